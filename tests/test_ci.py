"""Hosted CI covers what pyproject.toml promises."""

import tomllib
from pathlib import Path

import yaml


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def test_every_extra_is_installed_alone():
    assert {row["extra"] for row in JOBS["extras"]["strategy"]["matrix"]["include"]} == {
        *PROJECT["optional-dependencies"]
    }


def test_every_python_is_tested_and_gets_the_wheel():
    promised = [f"3.{minor}" for minor in range(11, 14)]
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert JOBS["test"]["strategy"]["matrix"]["python"] == JOBS["wheel"]["strategy"]["matrix"]["python"] == promised


def test_its_commands_are_those_of_the_makefile():
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if line[:1].isalpha()}
    steps = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
    made = {run.removeprefix("make ") for run in steps if run.startswith("make ")}
    assert made == {"lint", "check", "test-faults", "wheel-smoke", "audit"} and made <= targets
