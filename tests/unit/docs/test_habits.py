"""Proves that pre-commit runs what `make check` runs, and that `make help` lists every target under a group."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def commands_of(target: str) -> list[str]:
    """The commands of a Makefile target, with the variables of the Makefile's head filled in."""
    body = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)
    assert body is not None, f"no target {target}"
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in body[1].splitlines()]


def test_pre_commit_runs_the_checks_of_make_check() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    entries = [hook["entry"] for hook in config["repos"][0]["hooks"]]
    assert entries == [command.removesuffix(" .") for command in commands_of("check")]
    assert len(entries) >= 4


def test_help_lists_every_target_under_a_group() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    assert targets is not None
    listed = re.findall(r"^  make (\S+)", done.stdout, re.M)
    assert sorted(listed) == sorted(targets[1].split())
    assert len(re.findall(r"^\w+$", done.stdout, re.M)) >= 3
    assert listed[0] == "help"
