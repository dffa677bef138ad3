"""Proves that run folders written by the first design (commit 207a76c) still resume, export and evaluate.

tests/fixtures/first_design/README.md says what they hold. Only public interfaces are used: command lines and the files of a
run folder.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tiny
from tests.faults import ROOT, Finished

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

FIXTURE = ROOT / "tests" / "fixtures" / "first_design"
STOPPED_AT, STEPS, STEPS_PER_EPOCH = 14, 30, 10
ADAPTER_TENSORS = 2 * 7 * 2  # layers x linear modules x (A, B)
CLOSE = {"rel": 1e-6, "abs": 1e-9}


@pytest.fixture
def run(finetune: Callable[..., Finished]) -> Callable[..., Finished]:
    """`finetune ARGUMENTS`; fails with its output unless it ends well."""

    def succeed(*arguments: str | Path) -> Finished:
        finished = finetune(*map(str, arguments), folder=ROOT)
        assert finished.code == 0, finished.output
        return finished

    return succeed


def copy(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(FIXTURE / name, folder / name))


def all_rows(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """By split and step; no row is there twice."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = {(row["split"], row["step"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def checkpoint_tensors(checkpoint: Path) -> dict[str, Any]:
    """Flat tensors by name, each joined from what the ranks held ("<name>@<start>")."""
    shards: dict[str, dict[int, Any]] = {}
    for path in checkpoint.glob("*.safetensors"):
        for key, values in safetensors.load_file(path).items():
            name, _, start = key.rpartition("@")
            shards.setdefault(name, {})[int(start)] = values.flatten()
    return {name: torch.cat([held[start] for start in sorted(held)]) for name, held in shards.items()}


def test_a_stopped_run_resumes_at_the_next_step_and_equals_the_undisturbed_run(
    tmp_path: Path, run: Callable[..., Finished]
) -> None:
    folder = copy("stopped", tmp_path)
    before = all_rows(folder / "metrics.jsonl")
    assert max(step for _, step in before) == STOPPED_AT and STOPPED_AT % STEPS_PER_EPOCH
    run("train", folder / "recipe.yaml", "--run-dir", folder)

    state = json.loads((folder / "run.json").read_text())
    assert state["status"] == "done"
    assert [session["start_step"] for session in state["sessions"]] == [0, STOPPED_AT]
    rows, expected = all_rows(folder / "metrics.jsonl"), all_rows(FIXTURE / "undisturbed.jsonl")
    assert {key: rows[key] for key in before} == before, "rows before the stop stay as they were"
    assert set(rows) == set(expected)
    assert [step for split, step in rows if split == "train"] == list(range(1, STEPS + 1))
    for key, row in expected.items():
        assert row["loss"] == pytest.approx(rows[key]["loss"], **CLOSE), key
        same = {name: row[name] for name in row if name in ("accuracy", "f1_macro", "learning_rate", "epoch")}
        assert same == pytest.approx({name: rows[key][name] for name in same}, **CLOSE), key


def test_a_done_run_exports_the_weights_of_its_checkpoint(tmp_path: Path, run: Callable[..., Finished]) -> None:
    folder = copy("done", tmp_path)
    run("export", folder, "--output", tmp_path / "exported")
    exported = safetensors.load_file(tmp_path / "exported" / "adapter_model.safetensors")
    stored = checkpoint_tensors(folder / "checkpoints" / (folder / "checkpoints" / "best").read_text().strip())
    assert len(exported) == ADAPTER_TENSORS
    for name, values in exported.items():
        trained = stored[name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")]
        assert values.abs().max() > 0, name
        assert torch.equal(values.flatten(), trained), name


def test_a_done_run_evaluates_to_its_stored_figures(tmp_path: Path, run: Callable[..., Finished]) -> None:
    folder = copy("done", tmp_path)
    stored = tiny.rows(folder, "validation")[-1]
    assert f"step-{stored['step']:08d}" == (folder / "checkpoints" / "best").read_text().strip()
    output = run("evaluate", folder).output
    figures = json.loads(output[output.index("{") : output.rindex("}") + 1])
    assert figures["loss"] == pytest.approx(stored["loss"], **CLOSE)
    assert figures["perplexity"] == pytest.approx(stored["perplexity"], **CLOSE)
    assert tiny.rows(folder, "validation")[-1] == stored, "evaluating leaves the training's own rows alone"
