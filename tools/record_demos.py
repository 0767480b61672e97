"""Keeps what the demos have measured for the documentation: the verdict, the criterion's table and the figure.

dadl demo strokes                                # writes dadl-demo-strokes
python tools/record_demos.py dadl-demo-strokes   # writes docs/demos/strokes.md and docs/demos/strokes.png
python tools/insert_measured.py                  # inserts them into the pages
"""

import argparse
import shutil
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "demos"
PREFIX = "dadl-demo-"


def shortened(table: str) -> str:
    """The verdict, the first table, which is the criterion's, and the note at the end of a ``table.md``."""
    verdict, first, *others = table.split("\n**")
    note = others[-1].strip().rpartition("\n\n")[2] if others else ""
    return "\n\n".join(part for part in (verdict.strip(), f"**{first.strip()}", note) if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep what demos have measured for the documentation.")
    parser.add_argument("folders", nargs="+", type=Path, help=f"folders of finished demos, named {PREFIX}NAME")
    for folder in parser.parse_args().folders:
        name = folder.resolve().name.removeprefix(PREFIX)
        DOCS.mkdir(exist_ok=True)
        (DOCS / f"{name}.md").write_text(shortened((folder / "table.md").read_text(encoding="utf-8")), encoding="utf-8")
        shutil.copyfile(folder / "figure.png", DOCS / f"{name}.png")


if __name__ == "__main__":
    main()
