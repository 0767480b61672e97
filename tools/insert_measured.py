"""Puts the measured tables into README.md, between their markers: no number there is typed by hand.

python benchmarks/update_readme.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- measured: (?P<path>\S+) -->\n.*?<!-- end -->", re.DOTALL)


def insert(match: re.Match[str]) -> str:
    path = ROOT / match["path"]
    if not path.exists():
        raise SystemExit(f"README.md names {match['path']}, which has not been measured yet")
    body = re.sub(r"^# .*\n+", "", path.read_text().strip())
    return f"<!-- measured: {match['path']} -->\n{body}\n<!-- end -->"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(BLOCK.sub(insert, readme.read_text()))
