"""Which evaluation is the best, when patience ends, and what survives a restart."""

from finetune.recipe.training import EarlyStopping
from finetune.training.progress import Progress


def judged(progress, values, metric="accuracy", min_delta=0.0):
    found = []
    for step, value in enumerate(values, start=1):
        progress.step = step
        found.append(progress.judge({metric: value}, min_delta))
    return found


def test_the_highest_accuracy_and_the_lowest_loss_are_best():
    up = Progress.start("accuracy", "auto")
    assert judged(up, [0.5, 0.7, 0.6, 0.7, 0.8]) == [True, True, False, False, True]
    assert (up.best_value, up.best_step) == (0.8, 5)
    down = Progress.start("loss", "auto")
    assert judged(down, [3.0, 2.0, 2.5], "loss") == [True, True, False]
    assert (down.best_value, down.best_step, down.stale) == (2.0, 2, 1)


def test_patience_counts_evaluations_that_gain_too_little():
    progress = Progress.start("accuracy", "auto")
    early = EarlyStopping(patience=2, min_delta=0.05)
    assert judged(progress, [0.5, 0.52, 0.54], min_delta=0.05) == [True, True, True]
    assert progress.exhausted(early)
    assert not progress.exhausted(None)


def test_a_metric_that_is_undefined_is_no_best():
    progress = Progress.start("roc_auc", "auto")
    assert progress.judge({"loss": 1.0}, 0.0) is False
    assert progress.best_value is None


def test_what_a_checkpoint_kept_is_taken_over_but_not_the_best_of_another_metric():
    first = Progress.start("accuracy", "auto")
    judged(first, [0.5, 0.4])
    same, other = Progress.start("accuracy", "auto"), Progress.start("loss", "auto")
    same.restore(first.to_dict())
    other.restore(first.to_dict())
    assert same == first
    assert (other.step, other.best_value, other.stale) == (2, None, 0)
    assert same.last == other.last == {"accuracy": 0.4}


def test_a_checkpoint_of_an_earlier_version_has_no_last_figures():
    stored = Progress.start("accuracy", "auto").to_dict()
    del stored["last"]
    progress = Progress.start("accuracy", "auto")
    progress.restore(stored)
    assert progress.last == {}
