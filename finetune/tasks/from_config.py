"""Task artifacts of a model that was not trained here, as far as its own files determine them.

Each task for which that is possible has a file `from_config.py` with its `DERIVATION`. What the files of a model leave open is
refused: no option is guessed from data.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import transformers

from finetune.errors import UserError
from finetune.models.adapter_source import find_adapter
from finetune.models.auto_classes import AUTO_CLASSES, class_of_adapter
from finetune.models.config import load_config
from finetune.recipe.model import ModelSection
from finetune.tasks import CARDS
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.classes import Classes, plain_lookup
from finetune.tasks.text.lengths import usable_length
from finetune.tasks.text.limits import Limit

UNLIMITED = 1_000_000  # more tokens than any limit
SHOWN = 8
LONGEST_NAME = 10_000  # characters of a class


def _always(config: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class Derivation:
    """How a task reads a model that was not trained here.

    artifacts: (model, config, notes) -> TaskArtifacts; adds to `notes` what was taken as it is although it may surprise, such
    as classes without names. fit: of a configuration for whose class transformers has the head of the task, how likely the
    head was trained for it: 0 if it was not; the highest of several tasks is chosen. reads_bodies: embeddings of a model
    without a head are those of rows of this task.
    """

    artifacts: Callable[[ModelSection, Any, list[str]], TaskArtifacts]
    fit: Callable[[Any], float] = _always
    reads_bodies: bool = False


def derive_artifacts(model: ModelSection, task: str, notes: list[str], *, body: bool = False) -> TaskArtifacts:
    """The artifacts of `model`. task: what the user says it is; "" to tell it from the configuration. body: only what lies
    below the head is asked (embeddings), so a model that has none will do.

    Raises: UserError for a model that none of our tasks fits, or whose files do not tell what is needed.
    """
    config = load_config(model)
    possible = possible_tasks(model, config) or (bodies(config) if body else [])
    if task and task not in possible:
        listed = ", ".join(possible) or "none of our tasks"
        raise UserError(
            f"the model cannot be asked for the task {task}: by its configuration it is made for {listed}",
            where=model.source,
            remedy=f"The tasks of models that were not trained here are {', '.join(derivations())}.",
        )
    if not possible:
        kinds = ", ".join(map(str, config.architectures or ())) or f"a {config.model_type} model of no stated class"
        raise UserError(
            f"the purpose of the model is not known: {kinds} answers none of our tasks",
            where=model.source,
            remedy=f"Give a model with a trained head of one of {', '.join(derivations())}; "
            "a body alone is to be trained first.",
        )
    chosen = task or possible[0]
    others = [name for name in possible if name != chosen]
    note = f"task {chosen}, by {', '.join(map(str, config.architectures or ())) or 'its adapter'}"
    notes.append(note + (f"; --task may also be {', '.join(others)}" if others and not task else ""))
    return derivations()[chosen].artifacts(model, config, notes)


@cache
def derivations() -> dict[str, Derivation]:
    """Of the tasks whose artifacts can be derived from a configuration, by name."""
    names = [name for name in CARDS if find_spec(f"finetune.tasks.{name}.from_config") is not None]
    return {name: importlib.import_module(f"finetune.tasks.{name}.from_config").DERIVATION for name in names}


def bodies(config: Any) -> list[str]:
    """Tasks whose models are this body with a head: how an encoder without one reads texts or images."""
    readers = [name for name, one in derivations().items() if one.reads_bodies]
    return [name for name in readers if type(config) in _models(CARDS[name].model.auto_class)]


def possible_tasks(model: ModelSection, config: Any) -> list[str]:
    """Tasks that the model's class, or its adapter's kind, is for; the likeliest first."""
    adapter = find_adapter(model.source)
    adapted = "" if adapter is None else class_of_adapter(adapter.settings)
    if adapted and not AUTO_CLASSES[adapted].peft:
        adapted = ""  # the head came with the adapter, and its configuration does not name the classes
    fits = {}
    for name, derivation in derivations().items():
        auto_class = CARDS[name].model.auto_class
        if auto_class == adapted or _is_among(auto_class, config):
            fits[name] = derivation.fit(config)
    return sorted((name for name, fit in fits.items() if fit), key=lambda name: -fits[name])


def _models(auto_class: str) -> Any:
    """{class of configurations: class of models} of a class of transformers."""
    return getattr(transformers, auto_class)._model_mapping


def _is_among(auto_class: str, config: Any) -> bool:
    """Whether one of the architectures is what `auto_class` makes of such a configuration, or says so by its name."""
    architectures = set(map(str, config.architectures or ()))
    kinds = _models(auto_class).get(type(config), ())
    names = {kind.__name__ for kind in (kinds if isinstance(kinds, (list, tuple)) else (kinds,))}
    own = (getattr(config, "auto_map", None) or {}).get(auto_class, "").rpartition(".")[2]  # code that the model brings
    return bool(architectures & (names | {own} - {""}))


def is_number(config: Any) -> bool:
    """Whether a head over a whole text gives one number in place of classes."""
    return getattr(config, "problem_type", None) == "regression" or len(config.id2label or ()) == 1


def config_classes(config: Any, notes: list[str]) -> Classes:
    """The classes that the head was trained with, in its order, under the names that the model has for them.

    Raises: UserError for a class without a name, or with one that is no name, and for numbers that leave out a class.
    """
    numbers = sorted(config.id2label)
    if not numbers or numbers != list(range(len(numbers))):
        listed = ", ".join(map(str, numbers[:SHOWN])) or "none"
        raise UserError(
            f"the classes of the model are numbered {listed}, not from 0 on without a gap",
            remedy="Name each class in id2label of its config.json, in the order of its head.",
        )
    names = [str(config.id2label[index]) for index in sorted(config.id2label)]
    if nameless := [index for index, name in enumerate(names) if not name.strip()]:
        raise UserError(
            f"class {nameless[0]} of the model has no name",
            remedy="Give each class a name in id2label of its config.json.",
        )
    if long := [index for index, name in enumerate(names) if len(name) > LONGEST_NAME]:
        raise UserError(
            f"class {long[0]} of the model has a name of {len(names[long[0]]):,} characters",
            remedy=f"Correct id2label of its config.json: names have at most {LONGEST_NAME:,} characters.",
        )
    counts = Counter(names)
    for name in sorted(name for name, count in counts.items() if count > 1):
        notes.append(f"{counts[name]} classes of the model are called {name!r}")
    more = ", ..." if len(names) > SHOWN else ""
    generated = names == [f"LABEL_{index}" for index in range(len(names))]
    why = " (generated names: the model does not say what its classes mean)" if generated else ""
    notes.append(f"{len(names)} classes: {', '.join(names[:SHOWN])}{more}{why}")
    return Classes(names, plain_lookup(names))


def text_limit(tokenizer: Any, config: Any, default: int, notes: list[str]) -> Limit:
    """Tokens of a text that the model takes; `default` where neither tokenizer nor model has a limit."""
    limit = usable_length(UNLIMITED, tokenizer, config)
    if limit < UNLIMITED:
        return limit
    notes.append(
        f"neither the tokenizer nor the model states a longest text: rows of more than {default} tokens are errors"
    )
    return Limit(default, "the default limit")
