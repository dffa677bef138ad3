"""`finetune verify`: the user's own recipe under every layout, against a plain float64 loop; a table and a verdict."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.app.opening import open_recipe
from finetune.app.recipe_check import check_recipe
from finetune.app.rounding import Figures, Twin, beyond, limits, read_twins, settings_of, twin_of
from finetune.distributed.launch import Launch
from finetune.distributed.watching import run_workers
from finetune.errors import TrainingFailed
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.tasks import CARDS
from finetune.terminal import print_line, print_rows
from finetune.tracking.run import recipe_text

TOLERANCE = 1e-5
FACTOR = 10  # more than that many times what float32 does to the plain loop is not rounding
COARSE = 1e-3  # above that, what float32 does to the plain loop is reported: it would hide a fault
EPSILON = 1e-4  # Adam's: at 1e-8, a gradient that is zero but for rounding becomes a step of full length
BATCH, ROWS, VALIDATION_ROWS = 16, 512, 33  # of the shrunk recipe, at most


@dataclass(frozen=True)
class Difference:
    """The largest one of a variant, relative; the first place where it is more than is `allowed` there, "" if none is.
    rounding: it is more than that, but float64 shows that nothing but rounding is the cause (rounding.py).
    """

    largest: float
    first: str = ""
    allowed: float = TOLERANCE
    rounding: bool = False


def verify(*, recipe: str, sets: list[str], full: bool, steps: int, processes: int) -> None:
    """Train a few steps under every layout on the CPU in float32, and compare. Prints a table.

    Raises: UserError; TrainingFailed that names what differs first.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # layouts are compared on the CPU, whatever the machine has
    loaded = open_for_cpu(recipe, sets)
    check_recipe(loaded)
    folder = Path(tempfile.mkdtemp(prefix="finetune-verify-"))
    settings = {"full": full, "steps": steps}
    _write_inputs(folder, loaded.recipe, settings)
    size = "its real size" if full else "a small model of its architecture with random weights"
    print_line(f"{loaded.recipe.name}: {steps} steps under each layout, {size}")
    print_line(
        f"on the CPU, in float32, without dropout, Adam's epsilon at least {EPSILON:.0e}; the same is {TOLERANCE:.0e}"
    )
    launch = Launch(["verify", str(folder / "recipe.yaml")], processes, deepspeed=True, cpu=True)
    run_workers(launch, folder / "logs", lambda line: None)
    figures = read_figures(folder)
    differences = compare_all(figures, folder)
    twins: list[Twin] = []
    if differing := [name for name, difference in differences.items() if difference.first]:
        print_line(
            "some layouts differ by more than rounding does to the plain loop: they are computed in float64, too"
        )
        (folder / "verify.json").write_text(json.dumps(settings_of(differing, settings)), encoding="utf-8")
        run_workers(launch, folder / "logs", lambda line: None)
        twins = read_twins(folder)
        differences = excuse(differences, figures, twins, folder)
    exact = {
        twin.float64["name"]: _difference(_measure(twin.float64, figures[0], folder), [])
        for twin in twins
        if not twin.refused
    }
    print_table(figures, {**differences, **exact}, twins)
    shutil.rmtree(folder)
    _conclude(figures, differences)


def _write_inputs(folder: Path, recipe: Recipe, settings: dict[str, Any]) -> None:
    """What the ranks read: the derived recipe and the settings."""
    (folder / "predictions").mkdir()
    (folder / "recipe.yaml").write_text(recipe_text(derive_recipe(recipe, full=settings["full"])), encoding="utf-8")
    (folder / "verify.json").write_text(json.dumps(settings), encoding="utf-8")


def _conclude(figures: Sequence[Mapping[str, Any]], differences: Mapping[str, Difference]) -> None:
    """Print how many layouts agree. Raises: TrainingFailed for the first that does not."""
    for name, difference in differences.items():
        if difference.first:
            raise TrainingFailed(
                difference.first,
                where=name,
                remedy=f"rounding explains less ({difference.allowed:.0e}): layouts must never change the numbers. "
                "Please report it with the recipe",
            )
    agreed = [figure for figure in figures[2:] if not figure["refused"]]
    worst = max((one.largest for figure in agreed if not (one := differences[figure["name"]]).rounding), default=0.0)
    rounded = sum(differences[figure["name"]].rounding for figure in agreed)
    print_line(f"{len(agreed)} layouts and the reference agree; the largest difference is {worst:.1e}")
    if (floor := differences[figures[1]["name"]].largest) > COARSE:
        print_line(
            f"note: float32 alone changes the plain loop by {floor:.1e} (a rounding at a kink or a tie changes a gradient), so "
            f"faults of up to {FACTOR * floor:.0e} may pass as rounding; verify another seed, too: --set seed=N"
        )
    if rounded:
        print_line(
            f"{rounded} of them in float64 alone: in float32, a rounding changes the gradients of this model by much more"
        )


def open_for_cpu(recipe: str, sets: list[str]) -> LoadedRecipe:
    """The recipe, in float32; torch's optimizer of the same update in place of one that needs CUDA, which is reported.

    Raises: UserError, RecipeFaults.
    """
    asked = open_recipe(recipe, sets, here=False).recipe
    spec = OPTIMIZERS[asked.training.optimizer]
    sets = [*sets, "training.precision=fp32"]
    if asked.model.float8 != "none":
        print_line("note: float8 rounds products to 8 bits, each micro-batch by itself; float32 is verified instead")
        sets.append("model.float8=none")
    if spec.device == "cuda":
        print_line(
            f"note: {spec.name} needs CUDA; {spec.same_update}, which makes the same update, is verified instead"
        )
        sets.append(f"training.optimizer={spec.same_update}")
    elif spec.scales:
        print_line(f"note: {spec.name} rounds its state; {spec.same_update}, which does not, is verified instead")
        sets.append(f"training.optimizer={spec.same_update}")
    return open_recipe(recipe, sets)


def derive_recipe(recipe: Recipe, *, full: bool) -> Recipe:
    """The recipe as it is verified: float32, no dropout of its own, statistics over the whole step; few rows unless full.

    The model is shrunk by the ranks, who can try it.
    """
    tree = recipe.model_dump(mode="json")
    tree["training"] |= {"precision": "fp32", "early_stopping": None}
    tree["training"]["epsilon"] = max(recipe.training.epsilon, EPSILON)
    tree["model"] |= {"dtype": "float32", "gradient_checkpointing": False, "kernels": "none", "compile": "none"}
    if tree["model"]["batch_norm"] == "local":
        tree["model"]["batch_norm"] = "synchronized"
    if tree["adapter"]:
        tree["adapter"]["dropout"] = 0.0
    tree["tracking"] |= {"wandb": "off", "log_every": 1}
    data = tree["data"]
    if not full:
        tree["training"]["global_batch"] = min(recipe.training.global_batch, BATCH)
        data["limit"] = min(data["limit"] or ROWS, ROWS)
    data["validation"] = [_few(source) for source in (data["validation"] or data["train"])[:1]]
    data["validation_fraction"], data["test"] = 0.0, []
    return recipe_type(CARDS[recipe.task])(**tree)


def _few(source: dict[str, Any]) -> dict[str, Any]:
    return {**source, "limit": min(source["limit"] or VALIDATION_ROWS, VALIDATION_ROWS)}


def read_figures(folder: Path) -> list[Figures]:
    """The reference's in float64, in float32, and those of the variants in their order."""
    files = sorted(folder.glob("variant-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    every = [folder / "reference.json", folder / "reference32.json", *files]
    return [json.loads(path.read_text(encoding="utf-8")) for path in every]


def compare_all(figures: list[Figures], folder: Path) -> dict[str, Difference]:
    """Each variant with the reference in float64. The reference in float32 shows what rounding alone does here."""
    reference, rounded, *variants = figures
    floor = _floor(figures, folder)
    found = {rounded["name"]: Difference(max(floor))}
    for variant in variants:
        measured = _measure(variant, reference, folder) if not variant["refused"] else []
        found[variant["name"]] = _difference(measured, _allowed(floor))
    return found


def excuse(
    differences: dict[str, Difference], figures: list[Figures], twins: Sequence[Twin], folder: Path
) -> dict[str, Difference]:
    """The differences, with those that are `rounding`: in float64 the layout's division of the examples agrees with the
    reference, and in float32 the layout agrees with that division.
    """
    reference, _, *variants = figures
    floor, found = _floor(figures, folder), dict(differences)
    for variant in variants:
        difference, twin = differences[variant["name"]], twin_of(variant["name"], twins)
        if not difference.first or twin is None:
            continue
        exact = not beyond(_measure(twin.float64, reference, folder), limits(floor, TOLERANCE))
        metrics = {name: twin.float32["evaluation"].get(name, math.nan) for name in reference["evaluation"]}
        alike = not beyond(_measure(variant, {**twin.float32, "evaluation": metrics}, folder), _allowed(floor))
        if exact and alike:
            found[variant["name"]] = Difference(difference.largest, rounding=True)
    return found


def _floor(figures: list[Figures], folder: Path) -> list[float]:
    """What float32 does to the plain loop, place by place."""
    reference, rounded, *_ = figures
    return [size for size, _ in _measure(rounded, reference, folder)]


def _allowed(floor: Sequence[float]) -> list[float]:
    return [max(TOLERANCE, FACTOR * size) for size in floor]


def _difference(measured: list[tuple[float, str]], allowed: list[float]) -> Difference:
    largest = max((math.inf if math.isnan(size) else size for size, _ in measured), default=0.0)
    first = beyond(measured, allowed)[:1]
    return Difference(largest, *first[0]) if first else Difference(largest)


def _measure(variant: Figures, reference: Figures, folder: Path) -> list[tuple[float, str]]:
    """(relative difference, where): step by step, then the evaluation, then every weight."""
    found: list[tuple[float, str]] = []
    for step in range(len(reference["losses"])):
        for key, name in (("losses", "the loss"), ("norms", "the gradient norm")):
            ours, theirs = variant[key][step], reference[key][step]
            found.append((relative(ours, theirs), f"step {step + 1}: {name} is {ours!r} instead of {theirs!r}"))
    for metric, theirs in reference["evaluation"].items():
        ours = variant["evaluation"].get(metric, math.nan)
        found.append((relative(ours, theirs), f"evaluation: {metric} is {ours!r} instead of {theirs!r}"))
    return found + _compare_weights(folder, variant["name"], reference["name"])


def relative(ours: float, theirs: float) -> float:
    """|a - b| / |b|; of numbers near 0, the difference itself."""
    if ours == theirs:
        return 0.0
    return abs(ours - theirs) / max(abs(theirs), 1e-3)


def _compare_weights(folder: Path, name: str, reference: str) -> list[tuple[float, str]]:
    """Root mean square of the difference, over that of the tensor or of all weights, whichever is larger."""
    import numpy as np
    from safetensors.numpy import load_file

    theirs, ours = load_file(folder / f"{reference}.safetensors"), load_file(folder / f"{name}.safetensors")
    if theirs.keys() != ours.keys():
        return [(math.inf, f"weights: {sorted(theirs.keys() ^ ours.keys())[:3]} are on one side alone")]
    count = sum(weight.size for weight in theirs.values())
    typical = math.sqrt(sum(float(np.square(weight).sum()) for weight in theirs.values()) / max(count, 1))
    found = []
    for tensor in sorted(theirs):
        mine, wanted = ours[tensor].astype(np.float64), theirs[tensor].astype(np.float64)
        size = _rms(mine - wanted) / max(_rms(wanted), typical, 1e-12)
        found.append((size, f"weights after the last step: {tensor}"))
    return found


def _rms(values: Any) -> float:
    return math.sqrt(float((values * values).mean())) if values.size else 0.0


def print_table(figures: list[Figures], differences: dict[str, Difference], twins: Sequence[Twin] = ()) -> None:
    """A row for each reference and variant, and for what was computed in float64, too."""
    reference, rounded, *variants = figures
    metrics = list(reference["evaluation"])[:3]
    losses = tuple(f"loss {step + 1}" for step in range(len(reference["losses"])))
    head = ("layout", *losses, "grad norm", *(f"eval {name}" for name in metrics), "weights", "differs by", "verdict")
    rows = [_row(reference, "plain, float64", metrics, "", "the reference")]
    rows.append(_row(rounded, "plain, float32", metrics, f"{differences[rounded['name']].largest:.1e}", "rounding"))
    for variant in variants:
        difference = differences[variant["name"]]
        if variant["refused"]:
            blank = ("-",) * (len(head) - 2)
            rows.append((variant["name"], *blank, f"not for this model: {variant['refused']}"))
        else:
            verdict = "DIFFERS" if difference.first else "same, see float64" if difference.rounding else "same"
            rows.append(_row(variant, variant["name"], metrics, f"{difference.largest:.1e}", verdict))
    for twin in twins:
        name = twin.float64["name"]
        if twin.refused:
            rows.append((name, *("-",) * (len(head) - 2), f"not for this model: {twin.refused}"))
            continue
        size = f"{differences[name].largest:.1e}"
        rows.append(_row(twin.float64, name, metrics, size, f"as {', '.join(twin.layouts)}"))
    print_rows(head, rows, titled=True)


def _row(figures: Figures, name: str, metrics: list[str], differs: str, verdict: str) -> tuple[str, ...]:
    losses = (f"{loss:.7f}" for loss in figures["losses"])
    evaluated = (f"{figures['evaluation'].get(metric, math.nan):.7g}" for metric in metrics)
    return (name, *losses, f"{figures['norms'][-1]:.6g}", *evaluated, figures["digest"], differs, verdict)
