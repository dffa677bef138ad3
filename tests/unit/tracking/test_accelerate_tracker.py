"""Proves that TensorBoard and MLflow get exactly the rows of metrics.jsonl, and that neither can end or block training.

TensorBoard is the real one, read back with its own reader. MLflow is a stand-in with the functions that Accelerate's
tracker calls, and their signatures.
"""

import inspect
import re
import sys
import threading
import tomllib
import types
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from finetune.errors import UserError
from finetune.events import Listener
from finetune.recipe import trackers
from finetune.tracking import accelerate_tracker
from finetune.tracking.accelerate_tracker import flatten
from finetune.tracking.journal import Journal, read_rows
from finetune.tracking.listeners import Listeners
from tests.unit.tracking.conftest import make_recipe

ROWS = [
    {"step": 1, "epoch": 0.25, "split": "train", "loss": 2.0, "learning_rate": 1e-4, "time": 1.0},
    {"step": 2, "epoch": 0.5, "split": "train", "loss": 1.5, "learning_rate": 2e-4, "time": 2.0},
    {"step": 2, "epoch": 0.5, "split": "validation", "loss": 1.25, "accuracy": 0.75, "time": 3.0},
    {"step": 4, "epoch": 1.0, "split": "train", "loss": 1.0, "learning_rate": 0.0, "time": 4.0},
]


@pytest.fixture(autouse=True)
def process_state():
    """Accelerate's trackers ask it whether this is the main process; a rank has it by then."""
    PartialState(cpu=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(run, name, rows, *, start_step=0, status="done"):
    """The listeners of a training; what they say."""
    said = []
    recipe = make_recipe(tracking={"also": [name], "project": "demo-project"})
    mirror = trackers.TRACKERS[name].listener_class(run, recipe, said.append)
    listeners = Listeners([Journal(run), mirror])
    listeners.started(start_step=start_step, total_steps=4, steps_per_epoch=4, facts={})
    for row in rows:
        listeners.row(row)
    listeners.finished(status=status, summary={})
    return said


def journal(run):
    """{"train/loss": [(step, value), ...]} of metrics.jsonl."""
    series = {}
    for row in read_rows(run.metrics_file):
        for key in row.keys() - {"step", "split", "time"}:
            series.setdefault(f"{row['split']}/{key}", []).append((row["step"], row[key]))
    return series


def event_files(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(str(run.tensorboard))
    files.Reload()
    return {tag: [(one.step, one.value) for one in files.Scalars(tag)] for tag in files.Tags()["scalars"]}


def assert_equal(found, expected):
    assert found.keys() == expected.keys() and len(found) == 6
    for tag, points in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in points]), tag


def test_tensorboard_has_the_rows_of_the_journal(run):
    assert train(run, "tensorboard", ROWS) == []
    assert_equal(event_files(run), journal(run))
    assert any("model.source" in path.read_text() for path in run.tensorboard.rglob("hparams.yml"))


def test_a_resumed_run_has_no_undone_steps_in_tensorboard(run):
    """Step 4 came after the checkpoint of step 2, and comes again with another loss."""
    train(run, "tensorboard", ROWS, status="stopped")
    train(run, "tensorboard", [{**ROWS[3], "loss": 0.5}], start_step=2)
    found = event_files(run)
    assert found["train/loss"] == [(1, 2.0), (2, 1.5), (4, 0.5)]
    assert_equal(found, journal(run))


@pytest.fixture
def mlflow(monkeypatch):
    """A stand-in for the package; `runs` holds what was logged: id -> (parameters, {metric: [(step, value)]}, ended)."""
    module = types.ModuleType("mlflow")
    module.__spec__ = types.SimpleNamespace(name="mlflow")
    module.utils = types.SimpleNamespace(
        validation=types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
    )
    runs, active = {}, []

    def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, tags=None, description=None):
        key = run_id or f"run-{len(runs)}"
        runs.setdefault(key, ({}, {}, []))
        active.append(key)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))

    def log_metrics(metrics, step=None):
        for key, value in metrics.items():
            runs[active[-1]][1].setdefault(key, []).append((step, value))

    module.search_experiments = lambda filter_string: []
    module.create_experiment = lambda name, artifact_location=None, tags=None: name
    module.start_run, module.log_metrics = start_run, log_metrics
    module.log_params = lambda params: runs[active[-1]][0].update(params)
    module.end_run = lambda status="FINISHED": runs[active.pop()][2].append(status)
    module.runs = runs
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def test_mlflow_has_the_rows_of_the_journal_and_a_resumed_run_continues_its_own(run, mlflow):
    assert train(run, "mlflow", ROWS[:3], status="stopped") == []
    assert train(run, "mlflow", ROWS[3:], start_step=2) == []
    assert list(mlflow.runs) == ["run-0"] == [run.read()["mlflow"]["id"]]
    parameters, metrics, ended = mlflow.runs["run-0"]
    assert_equal(metrics, journal(run))
    assert parameters["task"] == "text_classification" and parameters["training.global_batch"]
    assert ended == ["KILLED", "FINISHED"]
    assert train(run, "mlflow", [], start_step=4, status="failed") == [] and ended[2:] == ["FAILED"]


def test_a_tracker_that_is_added_when_resuming_gets_the_earlier_rows(run, mlflow):
    train(run, "tensorboard", ROWS[:3], status="stopped")
    train(run, "mlflow", ROWS[3:], start_step=2)
    assert_equal(mlflow.runs["run-0"][1], journal(run))


def test_a_tracker_that_fails_is_reported_once_without_secrets_and_training_goes_on(run, mlflow):
    def refuse(metrics, step=None):
        raise ConnectionError("https://user:hunter2hunter2@host refused\nsecond line")

    mlflow.log_metrics = refuse
    said = train(run, "mlflow", ROWS)
    assert len(said) == 1 and said[0].startswith("mlflow is disabled, training continues (ConnectionError: ")
    assert "hunter2" not in said[0] and "second line" not in said[0]
    assert len(list(read_rows(run.metrics_file))) == len(ROWS)


def test_a_tracker_that_hangs_does_not_keep_the_run_from_ending(run, mlflow, monkeypatch):
    answer = threading.Event()
    mlflow.start_run = lambda **arguments: answer.wait(30)
    monkeypatch.setattr(accelerate_tracker, "FINISH_SECONDS", 0.05)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2hunter2@127.0.0.1:9")
    (said,) = train(run, "mlflow", ROWS)
    answer.set()
    assert "127.0.0.1:9 did not finish within 0 s: it lacks 4 of the 4 rows of this start" in said
    assert "hunter2" not in said and "metrics.jsonl has them" in said
    assert len(list(read_rows(run.metrics_file))) == len(ROWS)


def test_a_missing_package_is_named_with_its_extra(run, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="mlflow, which is not installed") as error:
        trackers.TRACKERS["mlflow"].listener_class(run, make_recipe())
    assert "pip install 'finetune[mlflow]'" in error.value.remedy


def test_the_stand_in_has_what_accelerates_tracker_calls():
    """Every function of mlflow that the used methods of the tracker name."""
    from accelerate.tracking import MLflowTracker

    text = "".join(
        inspect.getsource(getattr(MLflowTracker, name))
        for name in ("start", "store_init_configuration", "log", "finish")
    )
    called = {"search_experiments", "create_experiment", "start_run", "log_params", "log_metrics", "end_run"}
    assert set(re.findall(r"mlflow\.(\w+)\(", text)) - {"log_param"} == called


def test_every_tracker_of_the_registry_has_its_listener_and_its_extra():
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for name, spec in trackers.TRACKERS.items():
        assert spec.listener_class.name == name and name in extras
        assert all(hasattr(spec.listener_class, event) for event in vars(Listener) if not event.startswith("_"))
    assert len(trackers.TRACKERS) == 2


def test_parameters_are_flat():
    assert dict(flatten({"a": {"b": 1, "c": None, "d": [1, "x"]}, "e": "text"})) == {
        "a.b": 1,
        "a.d": '[1, "x"]',
        "e": "text",
    }
