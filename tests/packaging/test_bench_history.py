"""Measurements of each commit go to a branch of their own, and the page shows them all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_history.py"
# In place of the command, which measures for minutes.
FAKE = """
import json, sys
from pathlib import Path

folder, number = Path(sys.argv[-1]), Path("number").read_text()
folder.mkdir(parents=True)
rows = [{"n": "64", "eager / dadl": number}]
(folder / "rank-cpu.json").write_text(json.dumps({"machine": "A <fast> machine", "rows": rows}))
"""


def git(place: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=place, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and its origin."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "someone")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "someone@example.org")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    git(tmp_path, "init", "--quiet", "--bare", "origin")
    git(tmp_path, "clone", "--quiet", "origin", "clone")
    place = tmp_path / "clone"
    (place / "dadl").mkdir()
    (place / "dadl" / "__main__.py").write_text(FAKE)
    (place / ".gitignore").write_text("build/\n")
    commit(place, "4.2", "2026-01-01T00:00:00Z")
    return place


def commit(place: Path, number: str, when: str) -> str:
    (place / "number").write_text(number)
    git(place, "add", "--all")
    environment = os.environ | {"GIT_COMMITTER_DATE": when}
    subprocess.run(["git", "commit", "--quiet", "--message", number], cwd=place, check=True, env=environment)
    return git(place, "rev-parse", "--short", "HEAD")


def tool(place: Path, *words: str) -> None:
    subprocess.run([sys.executable, str(TOOL), *words], cwd=place, check=True)


def test_measurements_gather_on_their_branch_and_on_the_page(clone: Path, tmp_path: Path) -> None:
    tool(clone, "page", "page.html")
    assert "Nothing is recorded yet" in (clone / "page.html").read_text()
    (clone / "page.html").unlink()

    first = git(clone, "rev-parse", "--short", "HEAD")
    tool(clone, "record", "--push")
    second = commit(clone, "3.9", "2026-02-01T00:00:00Z")
    tool(clone, "record", "--push")
    names = git(clone, "ls-tree", "-r", "--name-only", "benchmark-history").splitlines()
    assert names == [f"2026-01-01-000000-{first}/rank-cpu.json", f"2026-02-01-000000-{second}/rank-cpu.json"]
    assert git(clone, "status", "--porcelain") == ""
    git(clone, "push", "--quiet", "origin", "HEAD:refs/heads/main")

    # Another clone, as of a workflow, has the branch of origin alone.
    git(tmp_path, "clone", "--quiet", "--branch", "main", "origin", "other")
    tool(tmp_path / "other", "page", "build/docs/page.html")
    page = (tmp_path / "other" / "build" / "docs" / "page.html").read_text()
    assert page.index(second) < page.index(first), "the newest comes first"
    assert "<td>64: eager / dadl</td><td>3.9</td><td>4.2</td>" in page
    assert "A &lt;fast&gt; machine" in page
    # And goes on with it.
    commit(tmp_path / "other", "4.0", "2026-03-01T00:00:00Z")
    tool(tmp_path / "other", "record", "--push")
    names = git(tmp_path / "origin", "ls-tree", "--name-only", "benchmark-history").splitlines()
    assert [name[:7] for name in names] == ["2026-01", "2026-02", "2026-03"]
