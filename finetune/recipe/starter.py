"""Writes a starter recipe for the user's own data: a comment on each key, the columns already filled in."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from finetune.recipe.card import TaskCard
from finetune.recipe.column_pairs import find_pairs
from finetune.recipe.paths import is_local, is_model_type
from finetune.recipe.roles import IMAGES, role_of
from finetune.recipe.user_path import user_path
from finetune.recipe.yaml_dialect import one_line


def write_starter(
    card: TaskCard,
    *,
    data: str,
    columns: Sequence[str],
    output: Path,
    model: str,
    schema: str,
    splits: Collection[str] = (),
) -> str:
    """The text of a starter recipe.

    data: value for `data.train`, as typed by the user in the current folder. columns: of that data; [] if unknown.
    splits: of validation and test those that the data holds beside train. model: value for `model.source` ("" leaves it
    to be filled in). schema: path of the JSON Schema.
    """
    local = is_local(data, Path.cwd())
    shown = _relative_to(user_path(data), output) if local else data
    blocks = [
        f"# yaml-language-server: $schema={schema}",
        f"# {card.summary.rstrip('.')}: fine-tuning on {data or 'your data'}.",
        f"# All other keys have defaults. To see them: finetune recipes show {output.name} --explain",
        "",
        f"name: {_name(output)}  # names the run folder",
        f"task: {card.name}",
        "",
        *_model_lines(card, model),
        "",
        *_data_lines(card, shown, columns, splits),
        *_option_lines(card),
        "",
        *_TRAINING.splitlines(),
    ]
    return "\n".join(blocks) + "\n"


def guess_columns(card: TaskCard, columns: Sequence[str]) -> dict[str, str]:
    """Role -> column of the data, as far as the names allow; no column is used for two roles."""
    free = {column.lower(): column for column in columns}
    found = {role: free.pop(column) for role, column in find_pairs(card.rows.columns, {}, list(free)).items()}
    for round_ in (_same, _also_called, _near):
        for role in card.rows.columns:
            column = round_(role, list(free)) if role not in found else None
            if column is not None:
                found[role] = free.pop(column)
    return {role: found[role] for role in card.rows.columns if role in found}


def _same(role: str, columns: Sequence[str]) -> str | None:
    return role if role in columns else None


def _also_called(role: str, columns: Sequence[str]) -> str | None:
    known = role_of(role)
    return next((name for name in (*known.aliases, *known.guesses) if name in columns), None)


def _near(role: str, columns: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(role, columns, n=1, cutoff=0.75)), None)


def _name(output: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", output.stem).strip("-._")
    return name if name and not name.isdigit() else f"recipe-{name}".rstrip("-")


def _relative_to(data: Path, output: Path) -> str:
    """Path of the data file relative to the recipe's folder, or absolute if they are far apart."""
    full = os.path.abspath(data)  # noqa: PTH100 - links keep their names
    seen = os.path.relpath(full, output.resolve().parent)
    if seen.startswith("../../../"):
        return full
    return seen if seen.startswith("..") else f"./{seen}"


def _model_lines(card: TaskCard, model: str) -> Iterator[str]:
    yield "model:"
    note = "hub id, folder, or package:<package>/<folder>"
    yield f"  source: {one_line(model)}  # {note}" if model else f"  source:  # fill in: {note}"
    if is_model_type(model) and not Path(model).is_dir():
        yield "  init: config  # random weights: a model type alone has no others; config: {...} sets its sizes"
        if not any(role in IMAGES for role in card.rows.columns):
            yield "  tokenizer: train:8000  # trained on data.train; or that of a model: hub id or folder"


def _data_lines(card: TaskCard, source: str, columns: Sequence[str], splits: Collection[str]) -> Iterator[str]:
    yield "data:"
    yield f"  train: {one_line(source)}" if source else "  train:  # fill in: a file, a folder, or a hub id"
    if "validation" in splits:
        yield f"  validation: {one_line(source)}  # its own split of the same data"
    else:
        yield "  validation_fraction: 0.1  # fraction held out of train; or give a file instead: `validation: other.csv`"
    if "test" in splits:
        yield f"  test: {one_line(source)}  # evaluated once, at the end"
    guessed = guess_columns(card, columns)
    yield "  columns:  # role of the task: column of the data" + (
        f" (available: {', '.join(columns)})" if columns else ""
    )
    for role, meaning in card.rows.columns.items():
        if role in guessed:
            yield f"    {role}: {one_line(guessed[role])}  # {meaning}"
        else:
            yield f"    # {role}: ...  # {meaning}"
    for alternatives in card.rows.required:
        if columns and not any(role in guessed for role in alternatives):
            yield f"    # fill in {' or '.join(alternatives)}: required by the task, and no column of this name was found"


def _option_lines(card: TaskCard) -> Iterator[str]:
    """The options of the task, each with its default and meaning, commented out."""
    fields = card.options.model_fields
    if not fields:
        return
    yield ""
    yield "# options:  # of this task, with their defaults"
    defaults = card.options.model_construct()
    for name, info in fields.items():
        required = info.is_required()
        value = "..." if required else one_line(defaults.model_dump(mode="json").get(name))
        yield f"#   {name}: {value}  # {info.description or ''}".rstrip(" #")


_TRAINING = """\
training:
  epochs: 3
  global_batch: 32  # examples per optimizer step over all ranks; the result does not depend on the number of ranks
  learning_rate: 5e-5  # peak: 1e-5 to 5e-5 for pretrained transformers, 1e-4 to 3e-4 for adapters, 1e-3 for pretrained CNNs
  schedule: linear  # or cosine, constant, inverse_sqrt
  warmup: 0.06  # below 1: fraction of all steps; 1 or more: number of steps

# adapter:  # uncomment to train a low-rank adapter (LoRA) instead of all weights
#   rank: 8

parallel:
  processes: auto  # one per GPU, or 1 without a GPU
  deepspeed: zero2  # none, or a configuration in ds_configs/; zero3 also shards the weights

tracking:
  wandb: auto  # online if an API key is found, otherwise offline; or off
  project: finetune"""
