"""What a sweep writes for others, where its trials run, and why they are told apart."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils

from finetune.app.sweep import sweep
from finetune.app.sweeping import slots
from finetune.app.sweeping.options import SweepOptions
from finetune.app.sweeping.process import TrialProcess
from finetune.app.sweeping.slots import list_slots
from finetune.errors import RecipeFaults, UserError

RECIPE = "resnet-digits"


def ask(grid: list[str], **options: object) -> None:
    sweep(SweepOptions(recipe=RECIPE, grid=tuple(grid), **options))  # type: ignore[arg-type]


def test_an_agent_of_wandb_starts_the_command_of_the_trial(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    grid = ["training.learning_rate=loguniform(1e-5, 1e-3)", "training.betas=[0.9,0.99],[0.8,0.9]", "data.columns=null"]
    ask(grid, draws=5, metric="loss", sets=("training.epochs=2",), wandb_sweep=file)
    written = yaml.safe_load(file.read_text())
    assert written["method"] == "random" and written["run_cap"] == 5
    assert written["metric"] == {"name": "validation/loss", "goal": "minimize"}
    rate = {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3}
    assert written["parameters"]["training.learning_rate"] == rate
    chosen = {"training.learning_rate": {"value": 3e-05}, "training.betas": {"value": "[0.9,0.99]"}}
    macros = utils.create_sweep_command_args({"args": chosen})
    words: list[str] = []
    for word in utils.create_sweep_command(list(written["command"])):  # as wandb_agent.py replaces them
        words += macros.get(word[2:-1], []) if word.startswith("${") and word.endswith("}") else [str(word)]
    shown = [word.replace("exec finetune", "printf '%s\\n' finetune") for word in words]
    done = subprocess.run(shown, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        *["finetune", "train", RECIPE, "--set=training.epochs=2", "--set=evaluation.best=loss"],
        *["--set=training.learning_rate=3e-05", "--set=training.betas=[0.9,0.99]"],
    ]


@pytest.mark.parametrize(
    ("grid", "options", "says"),
    [
        (
            ["training.lerning_rate=1,2,3"],
            {},
            r"1 fault.*--grid training.lerning_rate.*did you mean  training.learning_r",
        ),
        (["training.learning_rate=fast,1e-3"], {}, r"1 fault.*--grid training.learning_rate.*fast.*a number above 0"),
        (["seed=1,2"], {"metric": "acuracy"}, r"--metric: .*did you mean  accuracy"),
        (["seed=1,2"], {"metric": "confusion_matrix"}, "a table"),
        (["seed=1,2"], {"sets": ("seed=3",)}, "--set gives this key one value"),
        (["evaluation.every=1,2"], {}, "compared by their evaluations"),
        (["parallel.micro_batch=1,2"], {}, "micro_batch=1 and micro_batch=2 are the same training"),
        (["seed=1,2"], {"sets": ("data.validation=null",)}, "no validation data"),
        (["data.train=absent.csv,builtin:digits"], {}, "no such file"),
        ([], {}, "empty"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    grid: list[str], options: dict[str, object], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def start(*arguments: object) -> None:
        raise AssertionError("a trial was started")

    monkeypatch.setattr(TrialProcess, "__init__", start)
    with pytest.raises(UserError) as caught:
        ask(grid, **options)
    assert re.search(says, str(caught.value), re.DOTALL), caught.value
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())
    assert isinstance(caught.value, RecipeFaults) or len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("visible", "gpus", "ranks", "parallel", "groups", "notes"),
    [
        (None, 4, 1, None, ["0", "1", "2", "3"], 0),
        (None, 4, 2, None, ["0,1", "2,3"], 0),
        ("3,5,7", 3, 2, None, ["3,5"], 1),
        ("GPU-a, GPU-b", 2, 1, 1, ["GPU-a"], 1),
    ],
)
def test_gpus_are_divided_into_groups(
    visible: str | None,
    gpus: int,
    ranks: int,
    parallel: int | None,
    groups: list[str],
    notes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "count_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found, told = list_slots(ranks, parallel)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found] == groups
    assert len(told) == notes
    with pytest.raises(UserError, match=f"on {gpus} GPUs"):
        list_slots(gpus + 1, None)
    with pytest.raises(UserError, match=f"on {gpus} GPUs"):
        list_slots(ranks, gpus + 1)


def test_trials_on_a_cpu_divide_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "count_gpus", lambda: 0)
    monkeypatch.setattr(slots.os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [slot.environment for slot in list_slots(2, 2)[0]] == [{"OMP_NUM_THREADS": "2"}] * 2
    assert len(list_slots(1, None)[0]) == 1
