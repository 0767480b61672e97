"""Puts measured tables into README.md and the pages of docs/, between their markers: no number there is typed by hand.

    python tools/insert_measured.py            # inserts them
    python tools/insert_measured.py --check    # fails if a page differs from what was measured

A marker names one file, which must exist, or several by a pattern with ``*``, of which there may be none yet and which
keep their titles:

    <!-- measured: benchmarks/results/ranksim-cpu.md -->
    <!-- end -->
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- measured: (?P<path>\S+) -->\n.*?<!-- end -->", re.DOTALL)
NOT_MEASURED = "*Nothing is recorded here yet.*"


class NotMeasuredError(Exception):
    """A page names a file that is not there."""


def pages(root: Path) -> list[Path]:
    """The pages that may hold markers."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def with_measured(page: Path, root: Path) -> str:
    """The text of a page with every block as it was measured."""

    def insert(match: re.Match[str]) -> str:
        path = match["path"]
        if "*" in path:
            texts = [file.read_text(encoding="utf-8").strip() for file in sorted(root.glob(path))]
            body = "\n\n".join(re.sub("^# ", "### ", text) for text in texts) or NOT_MEASURED
        elif (root / path).exists():
            body = re.sub(r"^# .*\n+", "", (root / path).read_text(encoding="utf-8").strip())
        else:
            raise NotMeasuredError(f"{page.relative_to(root)} names {path}, which has not been measured yet")
        return f"<!-- measured: {path} -->\n{body}\n<!-- end -->"

    return BLOCK.sub(insert, page.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Insert measured tables into README.md and the pages of docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a page is out of date")
    check = parser.parse_args().check
    try:
        texts = {page: with_measured(page, ROOT) for page in pages(ROOT)}
    except NotMeasuredError as error:
        sys.exit(str(error))
    stale = [page for page, text in texts.items() if text != page.read_text(encoding="utf-8")]
    if check and stale:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        sys.exit(f"out of date: {names}; run python tools/insert_measured.py")
    for page in stale:
        page.write_text(texts[page], encoding="utf-8")


if __name__ == "__main__":
    main()
