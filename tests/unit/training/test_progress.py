"""Which evaluation is the best, when patience ends, and what survives a restart."""

import math

from finetune.metrics.evaluation import Evaluation
from finetune.recipe.training import EarlyStopping
from finetune.training.progress import Progress


def judged(progress, values, metric="accuracy", min_delta=0.0):
    found = []
    for step, value in enumerate(values, start=1):
        progress.step = step
        found.append(progress.judge({metric: value}, min_delta))
    return found


def test_the_highest_accuracy_and_the_lowest_loss_are_best():
    up = Progress("accuracy", "max")
    assert judged(up, [0.5, 0.7, 0.6, 0.7, 0.8]) == [True, True, False, False, True]
    assert (up.best_value, up.best_step) == (0.8, 5)
    down = Progress("loss", "min")
    assert judged(down, [3.0, 2.0, 2.5], "loss") == [True, True, False]
    assert (down.best_value, down.best_step, down.stale) == (2.0, 2, 1)


def test_patience_counts_evaluations_that_gain_too_little():
    progress = Progress("accuracy", "max")
    early = EarlyStopping(patience=2, min_delta=0.05)
    assert judged(progress, [0.5, 0.52, 0.54], min_delta=0.05) == [True, True, True]
    assert progress.exhausted(early)
    assert not progress.exhausted(None)


def test_a_metric_that_is_undefined_is_no_best():
    progress = Progress("roc_auc", "max")
    assert progress.judge({"loss": 1.0}, 0.0) is False
    assert progress.best_value is None


def test_what_follows_from_an_undefined_metric_is_said():
    why = {"mae": "there are no examples", "pearson": "all targets are equal"}
    evaluation = Evaluation("validation", {"loss": 1.0}, 3, undefined=why)
    progress, early = Progress("pearson", "max", step=20), EarlyStopping(patience=2)
    follows = "It chooses the best checkpoint: step 20 cannot be the best"
    assert progress.undefined_in_words(evaluation, None) == [
        "mae is undefined for validation: there are no examples",
        f"pearson is undefined for validation: all targets are equal. {follows}",
    ]
    assert progress.undefined_in_words(evaluation, early)[1].endswith(
        ", and early stopping does not count this evaluation"
    )
    assert progress.judge(evaluation.scalars, 0.0) is False and progress.stale == 0
    test = Evaluation("test", {}, 3, undefined=why)
    assert progress.undefined_in_words(test, early)[1] == "pearson is undefined for test: all targets are equal"


def test_of_equal_figures_the_one_with_the_lower_loss_is_best():
    progress = Progress("entity_f1", "max")
    found = []
    for step, (value, loss) in enumerate([(0.0, 3.0), (0.0, 2.0), (0.0, 2.5), (0.5, 4.0), (0.5, math.nan), (0.5, 3.9)]):
        progress.step = step
        found.append(progress.judge({"entity_f1": value, "loss": loss}, 0.0))
    assert found == [True, True, False, True, False, True]
    assert progress.best_step == 5 and progress.stale == 2  # patience counts gains of the metric alone


def test_what_a_checkpoint_kept_is_taken_over_but_not_the_best_of_another_metric():
    first = Progress("accuracy", "max")
    judged(first, [0.5, 0.4])
    same, other = Progress("accuracy", "max"), Progress("loss", "min")
    same.restore(first.to_dict())
    other.restore(first.to_dict())
    assert same == first
    assert (other.step, other.best_value, other.stale) == (2, None, 0)
    assert same.last == other.last == {"accuracy": 0.4}


def test_the_figures_of_the_best_evaluation_are_kept_beside_its_value():
    progress = Progress("accuracy", "max")
    for step, scalars in enumerate(
        [{"accuracy": 0.7, "loss": 0.5373, "roc_auc": math.nan}, {"accuracy": 0.6, "loss": 0.5340}]
    ):
        progress.step = step
        progress.judge(scalars, 0.0)
    assert progress.best_figures == {"accuracy": 0.7, "loss": 0.5373}
    stored = progress.to_dict()
    again, earlier = Progress("accuracy", "max"), Progress("accuracy", "max")
    again.restore(stored)
    assert again == progress
    del stored["best_figures"]  # as checkpoints of earlier versions are
    earlier.restore(stored)
    assert earlier.best_figures == {"accuracy": 0.7}
    earlier.forget_best()
    assert earlier.best_figures == {}


def test_a_checkpoint_of_an_earlier_version_has_no_last_figures():
    stored = Progress("accuracy", "max").to_dict()
    del stored["last"]
    progress = Progress("accuracy", "max")
    progress.restore(stored)
    assert progress.last == {}


def test_patience_begins_anew_where_the_best_is_forgotten():
    """Such as on other validation rows: a training whose patience had ended goes on."""
    progress, early = Progress("accuracy", "max"), EarlyStopping(patience=1)
    judged(progress, [0.5, 0.4])
    assert progress.exhausted(early)
    progress.forget_best()
    assert not progress.exhausted(early)
