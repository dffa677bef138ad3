"""`finetune verify`: the user's own recipe under every layout, against a plain float64 loop; a table and a verdict."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.app.opening import open_recipe
from finetune.app.train import check, is_worker, tell, worker
from finetune.distributed.launch import Launch, run_workers
from finetune.errors import TrainingFailed
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.tasks import CARDS
from finetune.terminal import print_rows
from finetune.tracking.run import recipe_text

TOLERANCE = 1e-5
BATCH, ROWS, VALIDATION_ROWS = 16, 512, 33  # of the shrunk recipe, at most


@dataclass(frozen=True)
class Difference:
    """The largest one of a variant, relative, and the first place beyond the tolerance ("" if there is none)."""

    largest: float
    where: str = ""


def verify(recipe: str, *, sets: list[str], full: bool, steps: int, processes: int) -> None:
    """Train a few steps under every layout on the CPU in float32, and compare. Prints a table.

    Raises: UserError; TrainingFailed that names what differs first.
    """
    if is_worker():
        with worker():
            from finetune.app.variants import work

            work(Path(recipe).parent)
        return
    loaded = open_recipe(recipe, sets)
    check(loaded)
    folder = Path(tempfile.mkdtemp(prefix="finetune-verify-"))
    (folder / "predictions").mkdir()
    (folder / "recipe.yaml").write_text(recipe_text(derive_recipe(loaded.recipe, full=full)), encoding="utf-8")
    (folder / "verify.json").write_text(json.dumps({"full": full, "steps": steps}), encoding="utf-8")
    size = "its real size" if full else "a small model of its architecture with random weights"
    tell(f"{loaded.recipe.name}: {steps} steps under each layout, {size}, float32 on the CPU, dropout off")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    launch = Launch(["verify", str(folder / "recipe.yaml")], processes, deepspeed=True, cpu=True)
    run_workers(launch, folder / "logs", lambda line: None)
    reference, variants = read_figures(folder)
    differences = [compare(variant, reference, folder) for variant in variants]
    tell_table(reference, variants, differences)
    shutil.rmtree(folder)
    for variant, difference in zip(variants, differences, strict=True):
        if difference.where:
            raise TrainingFailed(
                f"{difference.where}; it differs by {difference.largest:.1e} at most, {TOLERANCE:.0e} is rounding",
                where=variant["name"],
                remedy="please report it with the recipe: layouts must never change the numbers",
            )


def derive_recipe(recipe: Recipe, *, full: bool) -> Recipe:
    """The recipe as it is verified: float32, no dropout of its own, statistics over the whole step; few rows unless full.

    The model is shrunk by the ranks, who can try it.
    """
    tree = recipe.model_dump(mode="json")
    tree["training"] |= {"precision": "fp32", "early_stopping": None}
    tree["model"] |= {"dtype": "float32", "gradient_checkpointing": False}
    if tree["model"]["batch_norm"] == "local":
        tree["model"]["batch_norm"] = "synchronised"
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


def read_figures(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The reference's, and those of the variants in their order."""
    files = sorted(folder.glob("variant-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    reference = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    return reference, [json.loads(path.read_text(encoding="utf-8")) for path in files]


def compare(variant: dict[str, Any], reference: dict[str, Any], folder: Path) -> Difference:
    """Step by step, then the evaluation, then every weight."""
    if variant["refused"]:
        return Difference(0.0)
    found: list[tuple[float, str]] = []
    for step, (loss, norm) in enumerate(zip(reference["losses"], reference["norms"], strict=True)):
        for what, ours, theirs in (("loss", variant["losses"][step], loss), ("norm", variant["norms"][step], norm)):
            name = "the loss" if what == "loss" else "the gradient norm"
            found.append((relative(ours, theirs), f"step {step + 1}: {name} is {ours!r} instead of {theirs!r}"))
    for metric, theirs in reference["evaluation"].items():
        ours = variant["evaluation"].get(metric, math.nan)
        found.append((relative(ours, theirs), f"evaluation: {metric} is {ours!r} instead of {theirs!r}"))
    found.extend(_compare_weights(folder, variant["name"], set(reference["idle"])))
    largest = max((size for size, _ in found), key=lambda size: math.inf if math.isnan(size) else size)
    first = next((where for size, where in found if not size <= TOLERANCE), "")
    return Difference(largest, first)


def relative(ours: float, theirs: float) -> float:
    """|a - b| / |b|; of numbers near 0, the difference itself."""
    if ours == theirs:
        return 0.0
    return abs(ours - theirs) / max(abs(theirs), 1e-3)


def _compare_weights(folder: Path, name: str, idle: set[str]) -> list[tuple[float, str]]:
    """Root mean square of the difference, over that of the tensor or of all weights, whichever is larger.

    Idle weights are left out: their gradient is zero but for rounding, which Adam turns into steps of full length.
    """
    import numpy as np
    from safetensors.numpy import load_file

    theirs, ours = load_file(folder / "reference.safetensors"), load_file(folder / f"{name}.safetensors")
    if theirs.keys() != ours.keys():
        return [(math.inf, f"weights: {sorted(theirs.keys() ^ ours.keys())[:3]} are on one side alone")]
    count = sum(weight.size for weight in theirs.values())
    typical = math.sqrt(sum(float(np.square(weight).sum()) for weight in theirs.values()) / max(count, 1))
    found = []
    for tensor in sorted(theirs.keys() - idle):
        mine, wanted = ours[tensor].astype(np.float64), theirs[tensor].astype(np.float64)
        size = _rms(mine - wanted) / max(_rms(wanted), typical, 1e-12)
        found.append((size, f"weights after the last step: {tensor}"))
    return found


def _rms(values: Any) -> float:
    return math.sqrt(float((values * values).mean())) if values.size else 0.0


def tell_table(reference: dict[str, Any], variants: list[dict[str, Any]], differences: list[Difference]) -> None:
    """A row for the reference and each variant."""
    steps, metrics = len(reference["losses"]), list(reference["evaluation"])[:3]
    losses = tuple(f"loss {step + 1}" for step in range(steps))
    head = ("layout", *losses, "grad norm", *(f"eval {name}" for name in metrics), "weights", "differs by", "verdict")
    rows = [_row(reference, metrics, "", "reference, float64")]
    for variant, difference in zip(variants, differences, strict=True):
        if variant["refused"]:
            blank = ("-",) * (len(head) - 2)
            rows.append((variant["name"], *blank, f"not for this model: {variant['refused']}"))
            continue
        verdict = "DIFFERS" if difference.where else "same"
        rows.append(_row(variant, metrics, f"{difference.largest:.1e}", verdict))
    print_rows(head, rows)
    if reference["idle"]:
        names = ", ".join(reference["idle"][:3])
        tell(f"left out of the weights: {len(reference['idle'])} whose gradient is zero but for rounding ({names})")


def _row(figures: dict[str, Any], metrics: list[str], differs: str, verdict: str) -> tuple[str, ...]:
    losses = (f"{loss:.7f}" for loss in figures["losses"])
    evaluated = (f"{figures['evaluation'].get(name, math.nan):.7g}" for name in metrics)
    return (figures["name"], *losses, f"{figures['norms'][-1]:.6g}", *evaluated, figures["digest"], differs, verdict)
