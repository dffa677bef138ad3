"""The lock file, the bill of materials and the licenses name the packages that constraints.txt pins, each with hashes."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "supply_chain"
NOT_LOCKED = {"finetune", "pip", "setuptools"}  # the project itself, and what installs it


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, tuple[str, list[str]]]:
    """name -> (version, hashes)"""
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in re.split(r"\n(?=[A-Za-z0-9])", (FOLDER / "requirements.lock").read_text(encoding="utf-8")):
        head = re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", entry)
        if head:
            found[normal(head[1])] = (head[2], re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    return found


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def test_every_locked_package_has_hashes_and_the_pinned_version() -> None:
    packages, pins = locked(), pinned()
    assert len(packages) > 100
    assert not [name for name, (_, hashes) in packages.items() if not hashes]
    assert {name: version for name, (version, _) in packages.items() if pins.get(name, version) != version} == {}


def test_what_pyproject_asks_for_is_locked() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"]]
    for extra in ("dev", "quantized", "serve"):
        asked += project["optional-dependencies"][extra]
    names = {normal(re.match(r"[A-Za-z0-9._-]+", one)[0]) for one in asked}  # type: ignore[index]
    assert names - locked().keys() - NOT_LOCKED == set()


def test_the_bill_of_materials_and_the_licenses_list_what_is_locked() -> None:
    expected = {name: version for name, (version, _) in locked().items()}
    components = json.loads((FOLDER / "sbom.cdx.json").read_text(encoding="utf-8"))["components"]
    listed = {normal(one["name"]): one["version"] for one in components}
    lines = (FOLDER / "licenses.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("|")]
    licensed = {normal(name.strip()): version.strip() for name, version in rows[2:]}
    for found in (listed, licensed):
        assert {name: version for name, version in found.items() if name not in NOT_LOCKED} == {
            name: version for name, version in expected.items() if name in found and name not in NOT_LOCKED
        }
        assert len(expected.keys() - found.keys()) < 8  # for other versions of Python than the one that listed them
