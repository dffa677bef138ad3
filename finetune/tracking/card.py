"""The model card: README.md of a model, with its metrics, how to load it, and the recipe that produced it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from finetune.recipe.recipe import Recipe
from finetune.recipe.yaml_dialect import dump
from finetune.terminal import printable
from finetune.tracking.run import describe_versions, shown
from finetune.tracking.shared_rows import shared_lines
from finetune.tracking.usage import Kind, loading_code, usage_of
from finetune.units import format_count, format_figure, format_number

_ADAPTERS = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}
_HUB_METRICS = {
    "accuracy": "accuracy",
    "f1_macro": "f1",
    "f1_micro": "f1",
    "precision": "precision",
    "recall": "recall",
    "matthews": "matthews_correlation",
    "roc_auc": "roc_auc",
    "perplexity": "perplexity",
}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def model_card(
    recipe: Recipe,
    figures: Mapping[str, Any],
    *,
    facts: Mapping[str, Any] | None = None,
    step: int | None = None,
    merged: bool = False,
) -> str:
    """README.md with a YAML header that the hub takes.

    figures: of exactly these weights: metric -> number, "test_accuracy" and the like for the test split; what is no
    finite number is left out. step: optimizer steps that these weights have seen. merged: the recipe's adapter is merged
    into the base. facts: as the loop reported them (ranks, parameters, examples, ...). A license is never guessed: it is
    left out.
    """
    facts = dict(facts or {})
    text = dump(_without_folders(shown(recipe)))
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    environment = jinja2.Environment(  # Markdown, not HTML: values are put in code spans or fences
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    columns, rows = _figure_table(figures)
    return environment.get_template("card.md.j2").render(
        header=yaml.safe_dump(card_header(recipe, figures, merged=merged), sort_keys=False, allow_unicode=True),
        name=recipe.name,
        summary=_summary(recipe, merged),
        columns=columns,
        rows=[[as_text(cell) for cell in row] for row in rows],
        weights=_weights(step, facts),
        shared=[as_text(line) for line in shared_lines(facts)],
        use=loading_code(
            usage_of(recipe.task),
            _kind(recipe, merged),
            new_tokens=bool(facts.get("new embeddings")),
            remote_code=recipe.model.trust_remote_code,
        ),
        training={key: as_text(value) for key, value in _training(recipe, facts).items()},
        recipe=printable(text),
        fence="`" * max(3, longest + 1),
    )


def as_text(value: Any) -> str:
    """A value in Markdown, on one line, in which nothing is a mark of Markdown or of HTML."""
    text = printable(" ".join(str(value).split()))
    return re.sub(r"([\\`*_\[\]<>|#!~&])", r"\\\1", text)


def as_code(value: Any) -> str:
    """A value in a code span that no character of it ends."""
    text = printable(" ".join(str(value).split()))
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    blank = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{blank}{text}{blank}{ticks}"


def card_header(recipe: Recipe, figures: Mapping[str, Any], *, merged: bool = False) -> dict[str, Any]:
    """The hub's metadata: only ids that can be on the hub, no folders of this machine, no license."""
    is_adapter = _kind(recipe, merged) == "adapter"
    header: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    if pipeline := usage_of(recipe.task).pipeline:
        header["pipeline_tag"] = pipeline
    if recipe.model.init == "pretrained" and _HUB_ID.match(recipe.model.source):
        header["base_model"] = recipe.model.source
        header["base_model_relation"] = "adapter" if is_adapter else "finetune"
    sets = [source.source for source in recipe.data.train if source.format in ("auto", "hub")]
    datasets = list(dict.fromkeys(name for name in sets if _HUB_ID.match(name) and not Path(name).suffix))
    if datasets:
        header["datasets"] = datasets
    names = [key.removeprefix("test_") for key in figures]
    metrics = list(dict.fromkeys(_HUB_METRICS[name] for name in names if name in _HUB_METRICS))
    if metrics:
        header["metrics"] = metrics
    header["tags"] = ["finetune", recipe.task.replace("_", "-"), *([recipe.adapter.kind] if recipe.adapter else [])]
    return header


def _kind(recipe: Recipe, merged: bool) -> Kind:
    if recipe.adapter is None:
        return "model"
    return "merged" if merged else "adapter"


def _figure_table(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column titles, and a row per metric: its name, its value on the validation split, on the test split."""
    splits: dict[str, dict[str, str]] = {"validation": {}, "test": {}}
    for key, value in figures.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            split = "test" if key.startswith("test_") else "validation"
            splits[split][key.removeprefix("test_")] = format_figure(value)
    splits = {split: values for split, values in splits.items() if values}
    names = list(dict.fromkeys(name for values in splits.values() for name in values))
    return ["metric", *splits], [[name, *(values.get(name, "") for values in splits.values())] for name in names]


def _weights(step: int | None, facts: Mapping[str, Any]) -> str:
    """Which weights these are: "step 75 of 150 (epoch 1.00)"; "" if the step is not known."""
    if step is None:
        return ""
    total, per_epoch = facts.get("total_steps"), facts.get("steps_per_epoch")
    text = f"step {step:,}" + (f" of {total:,}" if total else "")
    return text + (f" (epoch {step / per_epoch:.2f})" if per_epoch else "")


def _summary(recipe: Recipe, merged: bool) -> str:
    """One sentence: what it is, and what it was trained for."""
    model = as_code(_tail(recipe.model.source)) if recipe.model.source else "a model"
    title = usage_of(recipe.task).title
    if recipe.adapter:
        adapter = f"{_ADAPTERS.get(recipe.adapter.kind, recipe.adapter.kind)} adapter of rank {recipe.adapter.rank}"
        if merged:
            return f"{model} fine-tuned for {title} with a {adapter}, which is merged into the weights."
        return f"A {adapter} for {model}, trained for {title}. {_needed_base(recipe)}"
    if recipe.model.init == "config":
        return f"{model} trained for {title} from random weights."
    frozen = ", with some of its weights frozen" if recipe.model.freeze else ""
    return f"{model} fine-tuned for {title}{frozen}."


def _needed_base(recipe: Recipe) -> str:
    """Where the adapter's base is."""
    if recipe.model.init == "config":
        return (
            "Its base is random weights that exist nowhere else: `finetune export` of its run writes them into `base/`, and "
            "`finetune export --merge` a whole model."
        )
    if recipe.adapter is not None and recipe.adapter.start == "merge":
        return "It needs that base model; where that was an adapter, `base/` has it, merged."
    return "It needs that base model."


def _training(recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, str]:
    training = recipe.training
    lines = {
        "length": _length(recipe, facts),
        "global batch": format_number(training.global_batch, "example"),
        "learning rate": f"{training.learning_rate:g} ({training.schedule} schedule)",
        "optimizer": training.optimizer,
        "seed": str(recipe.seed),
    }
    if isinstance(facts.get("examples"), Mapping):
        lines["examples"] = ", ".join(f"{count:,} {split}" for split, count in facts["examples"].items())
    if facts.get("parameters"):
        trained = facts.get("trainable_parameters", facts["parameters"])
        lines["parameters"] = f"{format_count(facts['parameters'])}, {format_count(trained)} of them trained"
    if facts.get("ranks"):
        device, precision = facts.get("device", "cpu"), facts.get("precision", "")
        lines["hardware"] = ", ".join(filter(None, [f"{format_number(facts['ranks'], 'rank')} on {device}", precision]))
    versions = describe_versions()
    lines["versions"] = ", ".join(
        f"{name} {versions[name]}" for name in ("finetune", "torch", "transformers") if name in versions
    )
    return {key: value for key, value in lines.items() if value}


def _length(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    """As it was planned: "2 epochs (150 steps)"; early stopping may have ended it sooner."""
    epochs, steps = recipe.training.epochs, recipe.training.steps or facts.get("total_steps")
    if not recipe.training.steps and not epochs and steps and facts.get("steps_per_epoch"):
        epochs = steps // facts["steps_per_epoch"]
    if not recipe.training.steps and epochs:
        return format_number(epochs, "epoch") + (f" ({format_number(steps, 'step')})" if steps else "")
    return format_number(steps, "step") if steps else ""


def _tail(source: str) -> str:
    """Only the last part of an absolute path; hub ids and package sources unchanged."""
    return Path(source).name if source.startswith("/") else source


def _without_folders(value: Any) -> Any:
    """The recipe for publishing: files by name, without their folders on this machine."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return _tail(value) if isinstance(value, str) else value
