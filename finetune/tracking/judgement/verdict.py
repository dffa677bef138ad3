"""The verdict on a run in a few sentences: how good, compared with what, whether it over-fitted, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune.tracking.judgement.calibration import Calibration
from finetune.tracking.judgement.intervals import Interval
from finetune.tracking.series import Series

Mark = Literal["good", "fair", "bad", "unknown"]
Mode = Literal["min", "max"]

GAP = 0.1  # the validation loss rises by so much of its best value: over-fitting
STILL_FALLING = 0.02  # the metric's last change is more than so much of its whole improvement
FEW = 200  # validation examples, below which intervals are wide
UNCALIBRATED = 0.1


@dataclass(frozen=True)
class Evaluated:
    """What is known of the chosen metric. values: at each evaluation, in order. baselines: name -> value. interval: of the best
    evaluation. examples: that were evaluated. errors: of numbers, beside the metric: name -> (value, of the best baseline).
    """

    metric: str
    mode: Mode
    values: Sequence[float]
    best: int
    baselines: Mapping[str, float] = field(default_factory=dict)
    interval: Interval | None = None
    examples: int = 0
    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """mark: for the color. line: one sentence. reasons: what it rests on. next_steps: what to try, the most useful first."""

    mark: Mark
    line: str
    reasons: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()


def judge(
    evaluated: Evaluated | None,
    *,
    validation_loss: Series | None,
    calibration: Calibration | None = None,
    metric: str = "loss",
    has_validation: bool = False,
) -> Verdict:
    """The verdict on a run, as far as it is known. metric: it chooses the best checkpoint. has_validation: of the data."""
    if (evaluated is None or not evaluated.values) and validation_loss is not None and metric != "loss":
        advice = "Choose by a figure that these rows always have: evaluation.best=loss."
        line = f"{metric} chooses the best checkpoint, but is undefined in every evaluation: none was chosen."
        return Verdict("unknown", line, next_steps=(advice,))
    if evaluated is None or not evaluated.values:
        advice = "Give the recipe validation data: data.validation, or data.validation_fraction."
        line = "Nothing was evaluated yet, so nobody can say whether the model is good."
        return Verdict("unknown", line, next_steps=() if has_validation else (advice,))
    reasons: list[str] = []
    steps: list[str] = []
    mark, line = _compared(evaluated)
    if larger := [name for name, (value, reference) in evaluated.errors.items() if value > reference]:
        compared = " and ".join(
            "{} ({} against {})".format(name, *map(figure, evaluated.errors[name])) for name in larger
        )
        reasons.append(f"the answers are further from the targets than the baseline's: {compared}")
        steps.append("Train until the errors are below the baseline's, or choose by them: evaluation.best=mse.")
        mark = "fair" if mark == "good" else mark
    rise = _rise(validation_loss)
    if rise is not None:
        reasons.append(rise)
        steps.append(
            "Over-fitting: fewer epochs, a lower learning rate, more data, or a larger weight decay or dropout."
        )
        mark = "fair" if mark == "good" and _is_last(evaluated) else mark
    if evaluated.best == len(evaluated.values) - 1 and len(evaluated.values) > 1 and _improves(evaluated):
        reasons.append(f"{evaluated.metric} was still improving at the last evaluation")
        steps.append("Train longer: a larger training.epochs.")
    elif mark == "bad" and _still_falls(validation_loss):
        reasons.append("the validation loss was still falling at the last evaluation")
        steps.append("Train longer, or faster: a larger training.epochs or training.learning_rate.")
    if evaluated.best < len(evaluated.values) - 1:
        reasons.append(
            f"the best of {len(evaluated.values)} evaluations is number {evaluated.best + 1}; its weights are kept"
        )
    known = len(evaluated.values)
    if validation_loss is not None and len(validation_loss) > known:
        missing = f"{len(validation_loss) - known} of {len(validation_loss)}"
        reasons.append(f"{evaluated.metric} is undefined in {missing} evaluations, which were not compared")
    if 0 < evaluated.examples < FEW:
        reasons.append(f"only {evaluated.examples} examples were evaluated, so the figures are uncertain")
        steps.append("Evaluate more examples: a larger validation split.")
    if calibration is not None and calibration.error > UNCALIBRATED:
        reasons.append(f"scores are off by {calibration.error:.0%} on average (expected calibration error)")
        steps.append(_calibrating(calibration))
    if not evaluated.baselines:
        steps.append("Set evaluation.at_start: true, so that the model before training is measured, too.")
    if not steps:
        steps.append("Look at the worst examples and at the confusions below: errors in labels show there first.")
    return Verdict(mark, line, tuple(reasons), tuple(steps))


def _compared(evaluated: Evaluated) -> tuple[Mark, str]:
    """Whether the interval, or else the figure, is beyond the best baseline."""
    value, metric = evaluated.values[evaluated.best], evaluated.metric
    sign = 1.0 if evaluated.mode == "max" else -1.0
    interval = evaluated.interval
    shown = f"{metric} {shown_interval(value, interval)}"
    if not evaluated.baselines:
        return "unknown", f"{shown}. There is no baseline to compare it with."
    name, reference = max(evaluated.baselines.items(), key=lambda item: sign * item[1])
    lowest = value if interval is None else (interval.low if sign > 0 else interval.high)
    against = f"{name}: {figure(reference)}"
    if sign * (lowest - reference) > 0:
        return "good", f"The model learned: {shown}, against {against}."
    if sign * (value - reference) > 0:
        return "fair", f"Perhaps better than the baseline: {shown}, against {against}, which lies inside the interval."
    return "bad", f"Not better than the baseline: {shown}, against {against}."


def _rise(loss: Series | None) -> str | None:
    """How far the validation loss has risen above its lowest value, if that is far."""
    if loss is None or len(loss) < 2:
        return None
    best, last = float(loss.values.min()), float(loss.values[-1])
    if last <= best * (1 + GAP) or best <= 0:
        return None
    epoch = float(loss.epochs[int(loss.values.argmin())])
    return f"over-fitting: the validation loss rose from {figure(best)} (epoch {epoch:.3g}) to {figure(last)}"


def _still_falls(loss: Series | None) -> bool:
    """Whether the last validation loss is the lowest, and clearly lower than the one before."""
    if loss is None or len(loss) < 2:
        return False
    first, before, last = (float(loss.values[at]) for at in (0, -2, -1))
    return last <= float(loss.values.min()) and before - last > STILL_FALLING * abs(first)


def _calibrating(calibration: Calibration) -> str:
    """What brings the scores nearer to the accuracy, which depends on the side on which they lie."""
    advice = "Do not read the scores as probabilities; "
    if calibration.confidence_excess < 0:
        return advice + "they are too low: training longer, or less label smoothing, brings them nearer."
    return advice + "they are too high: label smoothing or fewer epochs bring them nearer."


def _is_last(evaluated: Evaluated) -> bool:
    return evaluated.best == len(evaluated.values) - 1


def _improves(evaluated: Evaluated) -> bool:
    first, before, last = evaluated.values[0], evaluated.values[-2], evaluated.values[-1]
    whole = abs(last - first)
    return whole > 0 and abs(last - before) > STILL_FALLING * whole


def figure(value: float) -> str:
    """Three digits: 0.861, 12.3, 1.2e-05."""
    return f"{value:.3g}"


def shown_interval(value: float, interval: Interval | None) -> str:
    """Such as "0.861 (95 % interval 0.84 to 0.88)", with as many digits as tell its ends apart, up to six."""
    if interval is None:
        return figure(value)
    low, high = interval.low, interval.high
    apart = next((number for number in (3, 4, 5) if f"{low:.{number}g}" != f"{high:.{number}g}"), 6)
    digits = 3 if apart == 3 or low == high else min(6, apart + 1)
    return f"{value:.{digits}g} (95 % interval {low:.{digits}g} to {high:.{digits}g})"
