"""Proves when `finetune verify` takes a difference for rounding: the exact numbers agree, and so do the rounded ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune.app.rounding import limits, read_twins
from finetune.app.verify import TOLERANCE, _conclude, compare_all, excuse, read_figures

NORM = 810.0
JUMP = 1 + 1.4e-4  # of the gradient, by a rounding at a kink


def write(folder: Path, file: str, name: str, norm: float, loss: float = 44.0, **more: Any) -> dict[str, Any]:
    save_file({"w": np.array([1.0, 2.0])}, folder / f"{name}.safetensors")
    figures = {
        "name": name,
        "losses": [loss],
        "norms": [norm],
        "evaluation": {"loss": 1.0, **more},
        "digest": "",
        "refused": "",
    }
    if file:
        (folder / file).write_text(json.dumps(figures))
    return figures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two layouts that differ alike, one that differs otherwise, and one that does not."""
    write(tmp_path, "reference.json", "reference", NORM)
    write(tmp_path, "reference32.json", "reference32", NORM * (1 + 1e-7))
    norms = {"1 rank": NORM, "2 ranks": NORM * JUMP, "ZeRO-2": NORM * JUMP * (1 + 1e-6), "ZeRO-3": NORM * 1.001}
    for number, (name, norm) in enumerate(norms.items()):
        write(tmp_path, f"variant-{number}.json", name, norm, accuracy=0.5)
    return tmp_path


def judge(folder: Path, norm64: float, norm32: float, layouts: list[str], refused: str = "") -> dict[str, str]:
    """The verdict on each layout, after its division was computed in float64 (norm64) and float32 (norm32)."""
    twin32, twin64 = write(folder, "", "twin32", norm32), write(folder, "", "twin64", norm64)
    value = {"layouts": layouts, "float32": twin32, "float64": {**twin64, "refused": refused}}
    (folder / "twin-0.json").write_text(json.dumps(value))
    figures = read_figures(folder)
    found = excuse(compare_all(figures, folder), figures, read_twins(folder), folder)
    verdicts = {name: "differs" if one.first else "rounding" if one.rounding else "same" for name, one in found.items()}
    assert verdicts.pop("reference32") == verdicts.pop("1 rank") == "same"
    return verdicts


ALL = ["2 ranks", "ZeRO-2", "ZeRO-3"]


def test_what_agrees_in_float64_and_with_its_division_in_float32_is_rounding(folder: Path) -> None:
    assert judge(folder, NORM * (1 + 1e-9), NORM * JUMP, ALL) == {
        "2 ranks": "rounding",
        "ZeRO-2": "rounding",
        "ZeRO-3": "differs",
    }


def test_what_differs_in_float64_too_is_none(folder: Path) -> None:
    assert set(judge(folder, NORM * JUMP, NORM * JUMP, ALL).values()) == {"differs"}


def test_only_layouts_of_that_division_are_excused(folder: Path) -> None:
    assert judge(folder, NORM, NORM * JUMP, ["2 ranks"])["ZeRO-2"] == "differs"


def test_what_cannot_be_computed_in_float64_is_not_excused(folder: Path) -> None:
    assert set(judge(folder, NORM, NORM * JUMP, ALL, refused="no kernel").values()) == {"differs"}


def test_float64_must_be_a_hundred_times_nearer_than_float32() -> None:
    assert limits([1e-7, 3e-2], TOLERANCE) == [TOLERANCE, 3e-4]


@pytest.mark.parametrize(("size", "told"), [(1e-6, False), (0.045, True)])
def test_a_coarse_float32_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: float, told: bool
) -> None:
    """What float32 alone does to the plain loop is what a layout may differ by: a large one would hide a fault."""
    write(tmp_path, "reference.json", "reference", NORM)
    for name in ("reference32", "variant-0"):
        write(tmp_path, f"{name}.json", name, NORM * (1 + size))
    figures = read_figures(tmp_path)
    _conclude(figures, compare_all(figures, tmp_path))
    said = capsys.readouterr().out
    assert "1 layouts and the reference agree" in said
    assert ("float32 alone changes the plain loop by 4.5e-02" in said and "up to 4e-01 may pass" in said) is told
