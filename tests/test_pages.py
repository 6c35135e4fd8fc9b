"""Every page's code is what is run here, as printed."""

import importlib
import importlib.util
import re
import warnings

import pytest

from tests.pages import DOCS, blocks, run_page

#: MyST-NB runs these when it builds them, or they are made when the pages are built.
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if not {"_build", "api", "tutorials", "all-messages.md"} & set(path.relative_to(DOCS).parts)
)


#: Packages that a page needs and a machine that runs the tests may lack.
NEEDED = {"howto/active_learning.md": "botorch", "howto/pitch.md": "torchcrepe"}


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if list(blocks(path.read_text()))],
    ids=lambda path: path.relative_to(DOCS).as_posix(),
)
def test_page(path, tmp_path, monkeypatch):
    needed = NEEDED.get(path.relative_to(DOCS).as_posix())
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)
    run_page(path)


#: Programs of other libraries on the page that sets them beside ours, by heading, and what each
#: imports. TyXe is not among them: it does not run with the Pyro of today, as the page says.
PEERS = {
    "inferno": "inferno",
    "torch-uncertainty, bayesian-torch, blitz": "torch_uncertainty",
    "Laplace (laplace-torch)": "laplace",
    "probly": "probly",
}


@pytest.fixture(scope="module")
def digits_and_loader():
    """What the page on other libraries has made when the first of their programs begins."""
    before = (DOCS / "coming-from.md").read_text().partition("## TyXe")[0]
    namespace = {"__name__": "coming_from"}
    for _, code, _ in blocks(before):
        exec(code, namespace)
    return namespace


@pytest.mark.parametrize("heading", PEERS)
def test_programs_of_other_libraries_run_where_they_are_installed(heading, digits_and_loader):
    section = (DOCS / "coming-from.md").read_text().partition(f"\n## {heading}\n")[2]
    program = re.search(r"^```py\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[1]
    namespace = dict(digits_and_loader)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        try:
            importlib.import_module(PEERS[heading])
        except (
            Exception
        ) as error:  # some come with libraries that do not fit the torch that is here
            pytest.skip(f"{PEERS[heading]} cannot be imported: {error}")
        exec(program, namespace)
    assert namespace["probabilities"].shape[-1] == 10


def test_every_program_of_another_library_is_known():
    page = (DOCS / "coming-from.md").read_text()
    headings = {
        section.partition("\n")[0] for section in page.split("\n## ") if "```py\n" in section
    }
    assert headings == {*PEERS, "TyXe"}


def test_pages_show_python_in_one_way():
    """Code that is not run would hide in a block of another name."""
    for path in PAGES:
        names = set(re.findall(r"^`{3,}([\w{}:-]+)", path.read_text(), re.MULTILINE))
        allowed = {"python", "py", "text", "shell", "sh", "{code-cell}", "{toctree}", "{image}"}
        allowed |= {"{figure}", "{include}", "{eval-rst}", "{note}", "{warning}", "{seealso}"}
        assert names <= allowed | {"{tip}", "{math}", "{literalinclude}"}, path


def test_what_a_page_shows_must_be_what_it_prints(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n")
    run_page(page)
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match="line 1: the page shows\n3"):
        run_page(page)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_files_that_a_page_names_exist(path):
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|json|md))`", path.read_text()))
    root = DOCS.parent
    assert not [f for f in named if not ((root / f).exists() or (root / "pyro_ibvi" / f).exists())]
