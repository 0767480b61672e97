"""What README.md and the pages of docs/ show: code runs, commands parse, links lead somewhere, tables are measured."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import cyclopts
import pytest
import torch
from dadl.cli import app
from markdown_it import MarkdownIt
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import dadl_ext

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def tools() -> dict[str, Any]:
    return runpy.run_path(str(TOOLS / "insert_measured.py"))


# ---- code -----------------------------------------------------------------------------------------------------------


def with_python() -> list[Path]:
    return [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", with_python(), ids=named)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "train.md":
        for package in ("kornia", "pandas", "pyarrow"):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    document = Sybil([PythonCodeBlockParser()], path=str(ROOT)).parse(page)
    examples = list(document.examples())
    assert len(examples) >= page.read_text(encoding="utf-8").count("```python")
    for example in examples:
        example.evaluate()


def test_code_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!--- invisible-code-block: python\none = 1\n-->\n\n```python\nassert one == 2\n```\n")
    hidden, shown = Sybil([PythonCodeBlockParser()], path=str(tmp_path)).parse(page).examples()
    hidden.evaluate()
    with pytest.raises(AssertionError):
        shown.evaluate()


# ---- shell lines ----------------------------------------------------------------------------------------------------


def shell_lines() -> list[tuple[str, str]]:
    """Each line of a shell block, with its page."""
    return [
        (named(page), line)
        for page in PAGES
        for block in SHELL.findall(page.read_text(encoding="utf-8"))
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_commands_can_be_called_as_shown(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        words = ["dadl", *words[words.index("dadl") + 1 :]]
    program, *rest = words
    if program == "dadl":
        monkeypatch.chdir(tmp_path)
        for word in rest:  # runs and data that a command wants to see
            if word.startswith(("dadl-train", "RUN")) or word.endswith(".csv"):
                Path(word).mkdir()
        parsed(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "python":
        compile((ROOT / rest[0]).read_text(encoding="utf-8"), rest[0], "exec")
    else:
        assert program == "pip"


def parsed(words: list[str]) -> None:
    """Parse a command of dadl without calling it; ``--config`` is every command's, and names a file that is there."""
    if "--config" in words:
        place = words.index("--config")
        assert (ROOT / words[place + 1]).is_file()
        words = words[:place] + words[place + 2 :]
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_a_command_that_cannot_be_called_is_found() -> None:
    with pytest.raises(cyclopts.CycloptsError):
        parsed(["train", "ranksim", "--data", "houses.csv", "--targett", "price"])


# ---- links ----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and MyST name them."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    titles = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere_in_the_repository(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_a_link_of_the_site_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    check = runpy.run_path(str(TOOLS / "check_links.py"))["broken_links"]
    (tmp_path / "index.html").write_text('<a href="#here"><a id="here" href="other.html#there"><img src="picture.png">')
    (tmp_path / "other.html").write_text('<p id="there"><a href="https://example.org/elsewhere">')
    assert check(tmp_path) == ["index.html:1: picture.png: there is no such file"]
    (tmp_path / "other.html").write_text("<p>")
    (tmp_path / "picture.png").touch()
    assert check(tmp_path) == ["index.html:1: other.html#there: there is no such anchor"]


# ---- measured tables and names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tables_are_as_measured(page: Path, tools: dict[str, Any]) -> None:
    assert page.read_text(encoding="utf-8") == tools["with_measured"](page, ROOT), "run python tools/insert_measured.py"


def test_measured_tables_are_inserted(tmp_path: Path, tools: dict[str, Any]) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- measured: one.md -->\nold\n<!-- end -->\n<!-- measured: gpu/*.md -->\n<!-- end -->\n")
    with pytest.raises(tools["NotMeasuredError"], match=r"README.md names one.md, which has not been measured yet"):
        tools["with_measured"](page, tmp_path)
    (tmp_path / "one.md").write_text("# title\n\n| 1 |\n")
    expected = "<!-- measured: one.md -->\n| 1 |\n<!-- end -->\n<!-- measured: gpu/*.md -->\n{}\n<!-- end -->\n"
    assert tools["with_measured"](page, tmp_path) == expected.format(tools["NOT_MEASURED"])
    (tmp_path / "gpu").mkdir()
    for name in ("b", "a"):
        (tmp_path / "gpu" / f"{name}.md").write_text(f"# {name}\n\n| {name} |\n")
    assert tools["with_measured"](page, tmp_path) == expected.format("### a\n\n| a |\n\n### b\n\n| b |")


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("functional", dadl_ext.functional),
        ("modules", dadl_ext),
        ("distributed", dadl_ext.distributed),
        ("reference", dadl_ext.reference),
    ],
)
def test_the_reference_has_every_public_name(page: str, module: Any) -> None:
    text = (ROOT / "docs" / "api" / f"{page}.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"auto(?:function|class):: (\w+)", text))
    assert shown == set(module.__all__) - {"functional", "reference"}


def test_the_reference_has_every_name_of_the_training_layer() -> None:
    import dadl

    text = (ROOT / "docs" / "api" / "dadl.md").read_text(encoding="utf-8")
    assert set(dadl.__all__) <= set(re.findall(r"auto(?:function|class):: (\w+)", text))


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180
