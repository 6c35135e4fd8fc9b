"""How the source reads: sizes, public names, one voice."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyro_ibvi"
MAX_FILE = 400
MAX_FUNCTION = 40

#: Longer than that still. The list only shrinks.
LONG_FILES = {
    "tests/models/test_choices.py",
    "tests/models/test_running.py",
}
LONG_FUNCTIONS = {
    "pyro_ibvi/training/loop.py:fit",
    "tests/objectives/test_direct.py:test_subclasses_keep_their_methods",
    "tests/training/test_refusals.py:mistakes",
}

#: Starts of a summary that gives an order where a contract says what the function does.
ORDERS = re.compile(
    r"(Add|Apply|Ask|Build|Call|Check|Clear|Collect|Compute|Convert|Copy|Count|Create|Draw|Evaluate"
    r"|Export|Find|Fit|Get|Give|Keep|Load|Make|Measure|Predict|Print|Put|Raise|Read|Remove"
    r"|Restore|Return|Run|Sample|Save|Say|Set|Show|Split|Start|Take|Tell|Train|Use|Warn|Write) "
)
BRITISH = re.compile(
    r"\b(\w*[a-z](isation|ising|ised|iser|ise)s?|behaviour|colour|favour\w*|centre[ds]?|neighbour\w*"
    r"|modell\w+|labell\w+|analyse[ds]?|grey)\b"
)
AMERICAN = re.compile(
    r".*(noise|wise|precise|rais|exercis|advis|rise|rising|aris|promis|guise|revis|surpris|pris|expertise"
    r"|premise|concise|supervis|otherwise|likewise|devise)",
    re.IGNORECASE,
)


def sources(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text()


def functions(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(function):
    """Lines from the first statement to the last, less the docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_file_is_long():
    folders = ("pyro_ibvi", "tests", "benchmarks")  # a tutorial is a page with a little code
    found = {path for path, source in sources(*folders) if len(source.splitlines()) > MAX_FILE}
    assert found - LONG_FILES == set(), f"above {MAX_FILE} lines: a second idea has moved in"


def test_no_function_is_long():
    found = {
        f"{path}:{function.name}"
        for path, source in sources("pyro_ibvi", "tests", "benchmarks")
        for function in functions(source)
        if num_lines(function) > MAX_FUNCTION
    }
    assert found - LONG_FUNCTIONS == set(), f"above {MAX_FUNCTION} lines of code"


def test_lines_of_a_function_are_counted_without_its_docstring():
    head = 'def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n'
    source = head + "    a = (\n        1\n    )\n    return a"
    assert [num_lines(f) for f in functions(source)] == [4]
    assert [num_lines(f) for f in functions('def f():\n    """One."""')] == [0]


def listed(source):
    """Names in a module's ``__all__``, or None."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


#: Hosts of other libraries, which nothing imports.
ROOMS_OF_ONE_MODULE = ("pyro_ibvi/lightning.py", "pyro_ibvi/botorch.py")


@pytest.mark.parametrize("path", [path for path, _ in sources("pyro_ibvi")])
def test_rooms_list_their_public_names_and_modules_below_do_not(path):
    source = (ROOT / path).read_text()
    if path in ROOMS_OF_ONE_MODULE:
        assert listed(source), "what users import from it"
        return
    if not path.endswith("__init__.py"):
        assert listed(source) is None, "a room's __init__ says what is public"
        return
    imported = {
        alias.asname or alias.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    assert sorted(listed(source) or []) == sorted(imported), "import what is public, list it once"
    assert not [name for name in imported if name.startswith("_") and name != "__version__"]


def docstrings(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text


def test_docstrings_say_what_a_function_does():
    found = [
        f"{path}:{name}: {text.splitlines()[0]}"
        for path, source in sources("pyro_ibvi")
        for name, text in docstrings(source)
        if ORDERS.match(text)
    ]
    assert not found, "\n".join(["third person: `Returns`, not `Return`", *found])


def british(text):
    return [m.group() for m in BRITISH.finditer(text) if not AMERICAN.match(m.group())]


def test_spelling_is_american():
    found = [
        f"{path}: {word}"
        for path, source in sources("pyro_ibvi", "benchmarks", "tutorials")
        for word in british(source)
    ]
    assert not found, "\n".join(found)
    assert british("a minimiser, normalised, of noise, supervised otherwise, initialisation") == [
        "minimiser",
        "normalised",
        "initialisation",
    ]


def first_words(node):
    """What a message begins with, or None if it begins with a value or is made elsewhere."""
    while isinstance(node, ast.BinOp):
        node = node.left
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return first_words(node.func.value)
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def messages(source):
    """First words of the errors and warnings that a source gives."""
    for node in ast.walk(ast.parse(source)):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        if isinstance(node, ast.Raise) or ast.unparse(call.func) == "warnings.warn":
            words = first_words(call.args[0])
            if words:
                yield words


def identifiers(source):
    """Names of functions, arguments and fields, with which a message may begin."""
    yield "muP"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
    for function in functions(source):
        yield function.name
        args = function.args
        yield from (a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs))


def small_starts(words, names):
    return [
        text
        for text in words
        if text[0].islower() and re.match(r"\w+", text).group() not in names - {"site"}
    ]


def test_messages_begin_with_a_capital_or_a_name_of_the_code():
    package = list(sources("pyro_ibvi"))
    names = {name for _, source in package for name in identifiers(source)}
    found = [f"{p}: {text}" for p, s in package for text in small_starts(messages(s), names)]
    assert not found, "\n".join(found)
    source = 'raise ValueError("the value")\nwarnings.warn(f"rank={1} and" + "a", stacklevel=2)'
    assert small_starts(messages(source), {"rank"}) == ["the value"]
