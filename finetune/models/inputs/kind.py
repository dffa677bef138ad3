"""What the program must know of a kind of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROWS = 4  # of random inputs


@dataclass(frozen=True)
class Known:
    """What a run knows of its inputs: the processor, settings of the task's artifacts, and a few texts like its own."""

    processor: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class InputKind:
    """processor: its name in artifacts.json. main_input: `main_input_name` of models that take such inputs.

    Its processors name it in their `model_input_names`. load: the processor that was saved into a folder; runs no code of it.
    random: (model, known, generator) -> ROWS rows of inputs of a model, or a few more of what is known, on the CPU; equal for
    equal generators.
    """

    processor: str
    main_input: str
    load: Callable[[Path], Any]
    random: Callable[[Any, Known, torch.Generator], dict[str, torch.Tensor]]
