"""Looks at the built pages as a reader's browser does: `make docs-check`.

Every link leads somewhere, no page asks another machine for anything, no script complains, each
formula is drawn, and the search finds what it should. It needs Chromium (Debian: `chromium`), on
the path or named by the variable CHROMIUM, and no network.
"""

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
]
#: Attributes whose address a browser fetches when it shows a page.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
#: Relations of a `link` that are not fetched.
NOT_FETCHED = {"index", "search", "next", "prev", "canonical", "author", "copyright", "genindex"}
#: What a search must find, and on which page.
SEARCHES = {"AutoMuPNormal": "the-guide", "predict": "prediction"}


class Page(html.parser.HTMLParser):
    """Links, fetched addresses, anchors, pictures and formulas of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.fetched, self.anchors = [], [], {""}
        self.without_alt, self.formulas, self.drawn, self.failed = [], 0, 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        classes = (given.get("class") or "").split()
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in FETCHED and given.get(FETCHED[tag]):
            relation = set((given.get("rel") or "").split())
            if not relation & NOT_FETCHED:
                self.fetched.append(given[FETCHED[tag]])
        alt = (given.get("alt") or "").strip()
        if tag == "img" and (not alt or alt.endswith((".png", ".svg"))):  # a name is no text
            self.without_alt.append(given.get("src"))
        self.formulas += tag in ("span", "div") and "math" in classes
        self.drawn += tag == "mjx-container"
        self.failed += "data-mjx-error" in given or tag == "mjx-merror"


def is_elsewhere(address):
    return bool(urllib.parse.urlsplit(address).scheme) or address.startswith("//")


def dead_links(pages):
    """Links and files of the pages that do not exist."""
    for path, page in pages.items():
        for address in page.links + page.fetched:
            if is_elsewhere(address):
                continue
            parts = urllib.parse.urlsplit(address)
            name = urllib.parse.unquote(parts.path)
            target = (path.parent / name).resolve() if name else path
            if not target.exists():
                yield f"{path.name}: {address} does not exist"
            elif target in pages and urllib.parse.unquote(parts.fragment) not in (
                pages[target].anchors
            ):
                yield f"{path.name}: {address} names no place of that page"


def fetched_from_elsewhere(pages):
    for path, page in pages.items():
        for address in page.fetched:
            if is_elsewhere(address) and not address.startswith("data:"):
                yield f"{path.name}: fetches {address}"


def browser():
    """Path of Chromium."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        sys.exit(
            "The pages are looked at by Chromium, and there is none. Install it (Debian: "
            "apt-get install chromium), or name it: CHROMIUM=/path/to/chromium make docs-check."
        )
    return found


def show(chromium, address):
    """A page as the browser made it, what its scripts said, and what it asked for elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "net.json"
        flags = [*FLAGS, f"--user-data-dir={folder}/user", f"--log-net-log={log}"]
        run = subprocess.run(
            [chromium, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=180
        )
        said = re.findall(r"CONSOLE[^\]]*\] (.*)", run.stderr)
        asked = asked_by_page(log.read_text()) if log.exists() else []
    return Page(run.stdout), said, asked, run.stdout


def asked_by_page(log):
    """Addresses elsewhere that a page asked for; the browser for itself has no origin."""
    found = set()
    for event in log.splitlines():
        origin = re.search(r'"initiator":"([^"]*)"', event)
        address = re.search(r'"url":"(https?://[^"]+)"', event)
        if origin and address and origin[1] != "not an origin":
            found.add(address[1])
    return sorted(found)


def look(chromium, path):
    """Complaints about one page, seen in the browser."""
    page, said, asked, text = show(chromium, path.as_uri())
    yield from (f"{path.name}: a script says {line}" for line in said)
    yield from (f"{path.name}: asks for {address}" for address in asked)
    if "</html>" not in text:
        yield f"{path.name}: the browser shows nothing"
    if page.drawn != page.formulas or page.failed:
        yield (
            f"{path.name}: of {page.formulas} formulas {page.drawn} are drawn, {page.failed} of "
            "them as an error"
        )


def search(chromium, root, word, page):
    """Complaints about the search for a word, which must find a page."""
    address = f"{(root / 'search.html').as_uri()}?q={word}"
    shown, said, _, text = show(chromium, address)
    yield from (f"search for {word}: a script says {line}" for line in said)
    results = text.partition('id="search-results"')[2]
    if not any(page in link and link in results for link in shown.links):
        yield f"search for {word}: {page} is not among the results"


def main(root):
    """Print what is wrong with the pages below `root`; the exit status tells whether anything."""
    files = sorted(path.resolve() for path in root.rglob("*.html"))
    if not files:
        sys.exit(f"No pages in {root}: run make docs first.")
    pages = {path: Page(path.read_text()) for path in files}
    wrong = [*dead_links(pages), *fetched_from_elsewhere(pages)]
    wrong += [
        f"{path.name}: the picture {source} has no alt text"
        for path, page in pages.items()
        for source in page.without_alt
    ]
    chromium = browser()
    shown = [path for path in files if "_modules" not in path.parts]
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda path: list(look(chromium, path)), shown):
            wrong += found
    for word, page in SEARCHES.items():
        wrong += search(chromium, root.resolve(), word, page)
    print("\n".join(wrong))
    formulas = sum(page.formulas for page in pages.values())
    print(json.dumps({"pages": len(files), "formulas": formulas, "complaints": len(wrong)}))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/_build/html")))
