"""Proves what the loop does when: rows, evaluations, checkpoints, early stopping, a request to stop, a loss that is not finite.

The loop runs for real on one rank, with the smallest engine and a tiny model; only the evaluation's figures are scripted.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.data.order import loader
from finetune.data.order.cost import CostModel
from finetune.data.order.loader import RankStep
from finetune.distributed.engines.engine import EngineOptions
from finetune.distributed.session import Session
from finetune.errors import Stopped, TrainingFailed
from finetune.metrics.evaluation import Evaluation, EvaluationStopped
from finetune.tasks.prepared_task import PreparedTask
from finetune.training.cadences import TrainingLength
from finetune.training.checkpoint_reader import open_checkpoint
from finetune.training.loop import Loop, OutputDirs
from finetune.training.parameter_groups import make_optimizer
from finetune.training.rank_speed import RankSpeedEstimator
from finetune.training.step_source import ScheduledSource
from finetune.training.stop import StopRequest
from tests.contract.examples import EXAMPLES
from tests.engines.single import SingleEngine
from tests.prepared import prepare

STOP = "stop"
STEPS_PER_EPOCH = 4  # eight rows, two a step
EXAMPLE = next(example for example in EXAMPLES if example.task == "text_classification")


class Recorder:
    """Keeps what the loop reports. stop_at: requests a stop during that step."""

    def __init__(self, stop, stop_at):
        self.stop, self.stop_at, self.events, self.losses = stop, stop_at, [], []

    def started(self, *, start_step, total_steps, steps_per_epoch, facts):
        self.events.append(("started", start_step, total_steps, steps_per_epoch))

    def step(self, *, step, epoch, progress):
        self.losses.append(progress["loss"])
        self.stop.requested = step + 1 == self.stop_at

    def row(self, row):
        self.events.append((row["split"], row["step"]))

    def table(self, name, *, step, columns, rows):
        self.events.append((name, step))

    def checkpoint(self, path, *, step, best):
        self.events.append(("best checkpoint" if best else "checkpoint", step))

    def message(self, text):
        self.events.append(("message", text))


class ScriptedEvaluator:
    """Validation losses in the order in which they are asked for; after the last one, the process is as good as killed.

    STOP among them: a stop is requested during that evaluation.
    """

    def __init__(self, losses):
        self.losses = iter(losses)

    def evaluate(self, split, examples, *, out=None, speeds=None):
        loss = next(self.losses, None)
        if loss is None:
            raise TrainingFailed("killed")
        if loss == STOP:
            raise EvaluationStopped
        return Evaluation(split, {"loss": loss}, len(examples))


class HardestExamples:
    """A source without a schedule: each step trains on the two examples whose loss is the largest by the weights so far."""

    length, facts = TrainingLength(total_steps=5, steps_per_epoch=5), {"step": "the two hardest examples"}

    def __init__(self, prepared, engine):
        self.prepared, self.engine, self.next = prepared, engine, 0
        self.rank_speed = RankSpeedEstimator("equal", engine.session, lookahead=0)
        self.taken, self.fetched = [], []  # (ids, sum of the weights) of each step; that sum when the next is fetched

    def open(self, from_step, notify):
        self.next = from_step
        return self

    def take(self):
        task, artifacts, examples = self.prepared.task, self.prepared.artifacts, self.prepared.datasets["train"]
        every = [task.collate(artifacts, [examples[index]]) for index in range(len(examples))]
        with torch.no_grad():
            losses = [float(task.loss_sum(artifacts, task.forward(self.engine.model, one), one)) for one in every]
        hardest = sorted(range(len(losses)), key=losses.__getitem__)[-2:]
        step = RankStep(self.next, 0, (tuple(hardest),))
        self.next += 1
        batch = task.collate(artifacts, [examples[index] for index in hardest])
        self.taken.append((sorted(batch.ids), self._weights()))
        return step, [batch]

    def fetch(self):
        self.fetched.append(self._weights())

    def waited(self):
        return 0.0

    def _weights(self):
        return sum(float(weight.detach().double().sum()) for weight in self.engine.module.parameters())


def train(
    folder,
    sections,
    losses=(),
    *,
    stop_at=0,
    resume="",
    best="",
    broken=None,
    lags=False,
    start_method="",
    hardest=False,
):
    """Train on this rank. broken: id of an example whose loss is NaN. lags: as on a GPU. start_method: of one loader process.
    hardest: see HardestExamples. Returns plain values.
    """
    folder = Path(folder)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        ready = prepare(EXAMPLE.recipe(folder, **sections))
    if losses:
        ready.datasets["validation"] = ready.datasets["train"]
    if broken is not None:
        ready.task = _Broken(ready.task, broken)
    torch.manual_seed(0)
    session = Session.open(None, precision="fp32", cpu=True)
    recipe = ready.plan.recipe
    engine = SingleEngine(
        session, ready.build(), lambda model: make_optimizer(model, recipe.training, "adamw"), EngineOptions(1.0)
    )
    output_dirs = OutputDirs(folder / "checkpoints", folder / "predictions")
    for directory in (output_dirs.checkpoints, output_dirs.predictions):
        directory.mkdir(exist_ok=True)
    stop = StopRequest()
    recorder = Recorder(stop, stop_at)
    prepared = PreparedTask(ready.task, ready.plan, ready.artifacts, ready.datasets)
    own = HardestExamples(prepared, engine)
    source = replace(ScheduledSource.of(prepared, engine, CostModel()), workers=1 if start_method else 0)
    loop = Loop(
        prepared,
        engine,
        own if hardest else source,
        ScriptedEvaluator(losses),
        output_dirs=output_dirs,
        listener=recorder,
        stop=stop,
    )
    loop.lags = lags
    error = outcome = None
    loader.START_METHOD = start_method or loader.START_METHOD
    try:
        start, kept = (open_checkpoint(Path(path)) if path else None for path in (resume, best))
        outcome = loop.run(start, kept, {})
    except (Stopped, TrainingFailed) as caught:
        error = str(caught)
    weights = {name: weight.detach().clone() for name, weight in engine.module.named_parameters()}
    return {
        "outcome": outcome,
        "error": error,
        "events": recorder.events,
        "losses": recorder.losses,
        "weights": weights,
        "source": (own.taken, own.fetched),
        "saved": sorted(str(path) for path in output_dirs.checkpoints.glob("step-*")),
    }


class _Broken:
    """The task, with a loss that is NaN for batches with one of the examples."""

    def __init__(self, task, broken):
        self._task, self._broken = task, broken

    def __getattr__(self, name):
        return getattr(self._task, name)

    def loss_sum(self, artifacts, outputs, batch):
        return self._task.loss_sum(artifacts, outputs, batch) * (math.nan if self._broken in batch.ids else 1.0)


def sections(*, every=STEPS_PER_EPOCH, samples=0, early_stopping=None, at_start=False, **training):
    training = {"precision": "fp32", "global_batch": 2, "epochs": 2, "learning_rate": 1e-2, **training}
    if early_stopping:
        training["early_stopping"] = early_stopping
    return {
        "training": training,
        "evaluation": {"best": "loss", "samples": samples, "at_start": at_start},
        "checkpoint": {"every": every, "keep": 2},
        "tracking": {"wandb": "off", "log_every": 2},
    }


@pytest.fixture
def loop_on_a_rank(ranks, tmp_path):
    def run(*arguments, folder="run", **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        return ranks.options(open_group=False, timeout=120).run(
            1, train, str(tmp_path / folder), *arguments, **options
        )[0]

    return run


def test_rows_evaluations_and_checkpoints_come_when_they_are_due(loop_on_a_rank):
    done = loop_on_a_rank(sections(every=3, samples=1), [0.9, 0.8])
    assert done["events"][0] == ("started", 0, 2 * STEPS_PER_EPOCH, STEPS_PER_EPOCH)
    at = {
        kind: [event[1] for event in done["events"] if event[0] == kind] for kind in ("train", "validation", "samples")
    }
    assert at == {"train": [1, 2, 4, 6, 8], "validation": [4, 8], "samples": [0, 8]}
    kept = [event for event in done["events"] if "checkpoint" in event[0]]
    assert kept == [("checkpoint", 3), ("best checkpoint", 4), ("checkpoint", 6), ("best checkpoint", 8)]
    assert [Path(path).name for path in done["saved"]] == ["step-00000006", "step-00000008"]
    assert (done["outcome"].steps, done["outcome"].best_step, done["outcome"].best_value) == (8, 8, 0.8)


def test_early_stopping_ends_with_the_best_weights(loop_on_a_rank):
    early = {"patience": 2}
    done = loop_on_a_rank(sections(epochs=6, early_stopping=early), [0.9, 0.5, 0.7, 0.6, 0.1, 0.1])
    outcome = done["outcome"]
    assert (outcome.steps, outcome.best_step, outcome.best_value) == (16, 8, 0.5)
    assert outcome.best["loss"] == 0.5 and outcome.last["loss"] == 0.6
    shorter = loop_on_a_rank(sections(epochs=6, early_stopping=early), [0.9, 0.5], stop_at=8, folder="shorter")
    assert "stopped after step 8 of 24" in shorter["error"]
    assert all(torch.equal(done["weights"][name], weight) for name, weight in shorter["weights"].items())


def test_a_stop_saves_and_the_rest_is_the_same(loop_on_a_rank):
    whole = loop_on_a_rank(sections())
    first = loop_on_a_rank(sections(), stop_at=3, folder="first")
    assert "stopped after step 3 of 8; its checkpoint is saved" in first["error"]
    assert [Path(path).name for path in first["saved"]] == ["step-00000003"]
    rest = loop_on_a_rank(sections(), resume=first["saved"][0], folder="rest")
    assert rest["events"][0] == ("started", 3, 8, STEPS_PER_EPOCH)
    assert first["losses"] + rest["losses"] == whole["losses"] and len(whole["losses"]) == 8
    assert all(torch.equal(rest["weights"][name], weight) for name, weight in whole["weights"].items())


def test_a_stop_where_an_evaluation_is_due_saves_first_and_evaluates_when_resumed(loop_on_a_rank):
    figures = [0.9, 0.5, 0.7, 0.1]
    whole = loop_on_a_rank(sections(epochs=4, every=100), figures)
    first = loop_on_a_rank(sections(epochs=4, every=100), figures, stop_at=4, folder="first")
    assert "stopped after step 4 of 16; its checkpoint is saved; it is evaluated when the run resumes" in first["error"]
    assert ("validation", 4) not in first["events"], "there may be no time for it"
    second = loop_on_a_rank(
        sections(epochs=4, every=100), figures, stop_at=12, resume=first["saved"][-1], folder="first"
    )
    assert second["events"][1][0] == "message" and "evaluating step 4 first" in second["events"][1][1]
    assert ("best checkpoint", 4) in second["events"] and ("validation", 12) not in second["events"]
    rest = loop_on_a_rank(sections(epochs=4, every=100), figures[2:], resume=second["saved"][-1], folder="first")
    shown = [event for part in (first, second, rest) for event in part["events"] if event[0] == "validation"]
    assert shown == [("validation", step) for step in (4, 8, 12, 16)]
    ours, theirs = rest["outcome"], whole["outcome"]
    assert (ours.best_step, ours.best_value, ours.best, ours.last) == (16, 0.1, {"loss": 0.1}, {"loss": 0.1})
    assert (theirs.best_step, theirs.best_value, theirs.best, theirs.last) == (16, 0.1, {"loss": 0.1}, {"loss": 0.1})
    assert all(torch.equal(rest["weights"][name], weight) for name, weight in whole["weights"].items())


def test_patience_counts_an_evaluation_that_a_stop_put_off(loop_on_a_rank):
    early = {"patience": 1}
    first = loop_on_a_rank(sections(epochs=6, early_stopping=early), [0.5], stop_at=8, folder="first")
    assert first["events"].count(("validation", 4)) == 1 and ("validation", 8) not in first["events"]
    rest = loop_on_a_rank(
        sections(epochs=6, early_stopping=early),
        [0.7],
        resume=first["saved"][-1],
        best=first["saved"][0],
        folder="first",
    )
    assert rest["losses"] == [] and (rest["outcome"].steps, rest["outcome"].best_step) == (8, 4)


def test_a_stop_at_the_last_step_is_saved_and_its_evaluation_is_left_to_the_resumed_run(loop_on_a_rank):
    first = loop_on_a_rank(sections(), [0.9], stop_at=8)  # no figure is left for a second evaluation
    assert "stopped after step 8 of 8; its checkpoint is saved; it is evaluated when the run resumes" in first["error"]
    assert Path(first["saved"][-1]).name == "step-00000008"
    rest = loop_on_a_rank(sections(), [0.8], resume=first["saved"][-1], best=first["saved"][0])
    assert rest["losses"] == [] and (rest["outcome"].best_step, rest["outcome"].best_value) == (8, 0.8)


@pytest.mark.parametrize("step", [4, 8])
def test_a_stop_during_an_evaluation_saves_and_the_resumed_run_evaluates_again(loop_on_a_rank, step):
    """Its checkpoint is that of a training whose evaluation had not begun; a second stop there saves nothing new."""
    figures = [0.9, 0.5][step // 4 - 1 :]
    whole = loop_on_a_rank(sections(every=100), [0.9, 0.5], folder="whole")
    first = loop_on_a_rank(sections(every=100), [*[0.9][: step // 4 - 1], STOP], folder="first")
    assert f"stopped after step {step} of 8; its checkpoint is saved; it is evaluated when" in first["error"]
    assert ("validation", step) not in first["events"] and first["events"][-1] == ("checkpoint", step)
    newest, best = first["saved"][-1], first["saved"][0] if step == 8 else ""
    loop = open_checkpoint(Path(newest)).manifest.loop
    assert (loop["step"], loop["unevaluated"]) == (step, True)
    again = loop_on_a_rank(sections(every=100), [STOP], resume=newest, best=best, folder="first")
    assert "its checkpoint is saved" in again["error"] and again["saved"] == first["saved"]
    assert not [event for event in again["events"] if "checkpoint" in event[0] or event[0] == "validation"]
    rest = loop_on_a_rank(sections(every=100), figures, resume=newest, best=best, folder="first")
    shown = [event for part in (first, again, rest) for event in part["events"] if event[0] == "validation"]
    assert shown == [("validation", 4), ("validation", 8)]
    assert (rest["outcome"].best_step, rest["outcome"].best) == (whole["outcome"].best_step, whole["outcome"].best)
    assert first["losses"] + rest["losses"] == whole["losses"] and len(whole["losses"]) == 8
    assert all(torch.equal(rest["weights"][name], weight) for name, weight in whole["weights"].items())


def test_a_stop_in_the_evaluation_before_the_first_step_saves_nothing(loop_on_a_rank):
    first = loop_on_a_rank(sections(at_start=True), [STOP])
    assert "stopped before the first step" in first["error"] and first["saved"] == [] and first["losses"] == []


def test_a_run_that_resumes_another_ones_checkpoint_saves_it_when_it_is_stopped_at_once(loop_on_a_rank):
    """Otherwise the message that the checkpoint is saved would be about another run."""
    other = loop_on_a_rank(sections(every=100), [STOP], folder="other")
    own = loop_on_a_rank(sections(every=100), [STOP], resume=other["saved"][-1], folder="own")
    assert [Path(path).name for path in own["saved"]] == ["step-00000004"] and "its checkpoint is saved" in own["error"]


def test_a_stop_at_the_last_step_is_an_ordinary_end(loop_on_a_rank):
    done = loop_on_a_rank(sections(), stop_at=8)
    assert done["error"] is None and done["outcome"].steps == 8
    assert done["outcome"].best_value is None and done["outcome"].best_step == 8  # nothing was validated


def test_a_loss_that_is_not_finite_names_step_and_examples(loop_on_a_rank):
    done = loop_on_a_rank(sections(every=1), broken=5)
    clean = loop_on_a_rank(sections(every=1), folder="clean")
    step = len(done["losses"]) + 1
    assert 1 <= step <= STEPS_PER_EPOCH and done["losses"] == clean["losses"][: step - 1]
    assert "the loss is nan" in done["error"] and f"step {step}" in done["error"]
    assert "examples [" in done["error"] and "5" in done["error"].partition("examples")[2]
    last = f"the checkpoint of step {step - 1} is good" if step > 1 else "no checkpoint was written yet"
    assert last in done["error"]
    assert [Path(path).name for path in done["saved"]] == [f"step-{i:08d}" for i in range(max(1, step - 2), step)]
    assert all(tensor.isfinite().all() for path in done["saved"] for tensor in _tensors(path))


@pytest.mark.parametrize("every", [1, STEPS_PER_EPOCH])
def test_behind_a_gpu_a_loss_that_is_not_finite_is_seen_before_anything_is_saved(loop_on_a_rank, every):
    """It is read a step later, or at once where the weights are saved: the step and examples named are the same."""
    rarely = sections(every=every) | {"tracking": {"wandb": "off", "log_every": 100}}
    at_once, clean = (loop_on_a_rank(rarely, broken=broken, folder=f"cpu {broken}") for broken in (2, None))
    late, fine = (loop_on_a_rank(rarely, broken=broken, lags=True, folder=f"gpu {broken}") for broken in (2, None))
    assert fine["error"] is None and fine["losses"] == clean["losses"]
    assert late["error"].splitlines()[0] == at_once["error"].splitlines()[0]
    assert (len(at_once["losses"]), len(late["losses"])) == (1, 1 if every == 1 else 2)
    assert all(tensor.isfinite().all() for path in late["saved"] for tensor in _tensors(path))


def _tensors(checkpoint):
    return [tensor for path in Path(checkpoint).glob("*.safetensors") for tensor in load_file(path).values()]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_loader_processes_give_the_same_losses_however_they_start(loop_on_a_rank, start_method):
    """What the loop gives them can be pickled, for platforms where they are not forked."""
    alone = loop_on_a_rank(sections(epochs=1), folder="alone")
    done = loop_on_a_rank(sections(epochs=1), folder=start_method, start_method=start_method)
    assert done["losses"] == alone["losses"] and len(done["losses"]) == STEPS_PER_EPOCH


def test_a_source_may_choose_each_step_by_the_weights_before_it(loop_on_a_rank):
    """The loop needs no schedule, and a step is taken after the update of the one before; `fetch` comes before it."""
    done = loop_on_a_rank(sections(), hardest=True)
    assert done["error"] is None and done["outcome"].steps == len(done["losses"]) == 5
    taken, fetched = done["source"]
    weights = [weight for _, weight in taken]
    assert len(set(weights)) == 5, "weights are updated between two steps"
    assert fetched == [weights[0], *weights], (
        "what is fetched ahead sees the weights that the step before it started from"
    )
    assert len({tuple(ids) for ids, _ in taken}) > 1 and all(len(ids) == 2 for ids, _ in taken)
    assert done["events"][0] == ("started", 0, 5, 5)
