"""What ``dadl bench`` measured at each commit, on a branch of its own, and a page that shows it.

    python tools/bench_history.py record [--push]    (make bench-history)
    python tools/bench_history.py page FILE          (make bench-page)

``record`` measures what is checked out, adds a folder of tables to the branch ``benchmark-history`` and commits it;
``--push`` pushes the branch to origin. Each table names its machine, and the page keeps machines apart.
"""

import argparse
import html
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

BRANCH = "benchmark-history"
TREE = Path("build") / BRANCH  # where the branch is checked out
MOST = 30  # commits on the page, the newest


def git(*words: str, cwd: Path = Path()) -> str:
    return subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def exists(name: str) -> bool:
    return subprocess.run(["git", "rev-parse", "--verify", "--quiet", name], capture_output=True).returncode == 0


def check_out() -> Path:
    """The branch in a folder of its own; where there is none yet, it begins with an empty commit."""
    if not exists(BRANCH):
        start = f"origin/{BRANCH}"
        if not exists(start):
            empty = git("hash-object", "-t", "tree", "-w", "/dev/null")
            start = git("commit-tree", empty, "-m", "Measurements begin")
        git("branch", "--no-track", BRANCH, start)
    git("worktree", "prune")
    if not TREE.exists():
        git("worktree", "add", str(TREE), BRANCH)
    return TREE


def record(push: bool) -> None:
    commit, when = git("show", "--no-patch", "--format=%h %cd", "--date=format:%Y-%m-%d-%H%M%S").split()
    tree = check_out()
    folder = tree / f"{when}-{commit}"
    subprocess.run([sys.executable, "-m", "dadl", "bench", "all", "--output", str(folder)], check=True)
    git("add", "--all", cwd=tree)
    git("commit", "--quiet", "--message", f"Measured at {commit}", cwd=tree)
    if push:
        git("push", "origin", BRANCH)


def histories(tree: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """For each table and machine: what was measured at each commit, the newest first."""
    found: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for folder in sorted((folder for folder in tree.iterdir() if folder.name[:1].isdigit()), reverse=True):
        for file in sorted(folder.glob("*.json")):
            contents = json.loads(file.read_text(encoding="utf-8"))
            of_table = found[file.stem, contents["machine"]]
            if len(of_table) < MOST:
                of_table[folder.name] = contents["rows"]
    return dict(sorted(found.items()))


def page(tree: Path | None) -> str:
    """Every number of every table: a line for each, a column for each commit."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>dadl: benchmarks by commit</title>"]
    parts += ["<style>body{font:15px sans-serif;margin:2em}td,th{padding:.2em .7em;text-align:right}"]
    parts += ["th:first-child,td:first-child{text-align:left}div{overflow-x:auto}</style><h1>Benchmarks by commit</h1>"]
    if tree is None:
        return "\n".join([*parts, "<p>Nothing is recorded yet.</p></html>\n"])
    cell = lambda kind, text: f"<{kind}>{html.escape(text)}</{kind}>"
    for (table, machine), commits in histories(tree).items():
        lines: dict[str, dict[str, str]] = defaultdict(dict)
        for commit, rows in commits.items():
            for row in rows:
                (_, name), *numbers = row.items()
                for title, number in numbers:
                    lines[f"{name}: {title}"][commit] = number
        parts += [f"<h2>{html.escape(table)}</h2><p>{html.escape(machine)}</p><div><table>"]
        parts += ["<tr><th></th>" + "".join(cell("th", commit) for commit in commits) + "</tr>"]
        for line, numbers in lines.items():
            cells = "".join(cell("td", numbers.get(commit, "–")) for commit in commits)
            parts += [f"<tr>{cell('td', line)}{cells}</tr>"]
        parts += ["</table></div>"]
    return "\n".join([*parts, "</html>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("record").add_argument("--push", action="store_true", help="the branch to origin")
    commands.add_parser("page").add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(options.push)
        return
    known = exists(BRANCH) or exists(f"origin/{BRANCH}")
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_text(page(check_out() if known else None), encoding="utf-8")


if __name__ == "__main__":
    main()
