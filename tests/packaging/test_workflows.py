"""Workflows know nothing that a checkout does not: they call make and .ci/run, with the targets that there are."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps_of(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_there_are_workflows() -> None:
    assert len(WORKFLOWS) > 3
    assert {"test", "wheel", "soak"} <= TARGETS


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_each_step_is_a_command_of_the_repository(workflow: Path) -> None:
    commands = [step["run"] for step in steps_of(workflow) if "run" in step]
    for command in commands:
        if command == ".ci/run":
            continue
        make, target, *variables = command.split()
        assert make == "make"
        assert target in TARGETS
        assert all(re.fullmatch(r"[A-Z]+=\w+", variable) for variable in variables)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_have_versions_and_tokens_few_rights(workflow: Path) -> None:
    assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}
    for action in (step["uses"] for step in steps_of(workflow) if "uses" in step):
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+)*", action)


def test_targets_are_listed_and_no_files() -> None:
    """A file called like a target would keep make from running it."""
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(phony.replace("\\\n", " ").split()) == TARGETS
