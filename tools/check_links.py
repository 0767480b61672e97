"""Follows every link of a built site within the site: files must exist, and the anchors in them.

    python tools/check_links.py build/docs

Sphinx checks references as it reads the pages; this looks at what it made of them, theme included.
"""

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page, and its links with the lines that they are on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[tuple[int, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.append((self.getpos()[0], value))


def broken_links(site: Path) -> list[str]:
    """A line for each link that leads nowhere."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    problems = []
    for path, page in pages.items():
        for line, link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue  # another site
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            where = f"{path.relative_to(site.resolve())}:{line}: {link}"
            if not target.exists():
                problems.append(f"{where}: there is no such file")
            elif target in pages and unquote(url.fragment) not in pages[target].anchors:
                problems.append(f"{where}: there is no such anchor")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description="Follow every link of a built site within the site.")
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site
    if not (site / "index.html").exists():
        sys.exit(f"{site} is not a built site: it has no index.html")
    if problems := broken_links(site):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
