"""The options of `finetune predict`: one object on its way from the command line through the launcher to every rank."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from finetune.errors import UserError

# Not part of what is asked: the same output goes on with other values of them.
HOW = frozenset(("processes", "slices", "layers", "stages", "max_errors", "restarts", "wandb", "draw"))
# In the manifest under names of their own.
NAMED = frozenset(("model", "data", "output", "checkpoint"))


WANDB = ("auto", "online", "offline", "off")
PRECISIONS = ("fp32", "bf16", "fp16")
QUANTIZATIONS = ("none", "8bit", "4bit")


@dataclass(frozen=True)
class PredictOptions:
    """See the help of the command. Every field is an option of the same name, but `model`, the argument.

    A new option is a field here and an entry of cli/predict_parameters.py: it reaches every rank, and an output that was
    begun with another value is refused, unless it is listed in HOW.
    """

    model: str
    data: tuple[str, ...]
    output: Path
    checkpoint: str = "best"
    top_k: int = 1
    threshold: float | None = None
    logprobs: bool = False
    keep: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    embed: bool = False
    normalize: bool = False
    draw: Path | None = None
    task: str = ""
    tile: int | None = None
    overlap: float | None = None
    whole_image: bool = True
    max_pixels: int | None = None
    max_boxes: int | None = None
    block: int | None = None
    stride: int | None = None
    merge: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    beams: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    precision: str | None = None
    quantization: str | None = None
    budget: int | None = None
    trust_remote_code: bool = False
    processes: int | None = None
    slices: int = 1
    layers: int = 1
    stages: int = 1
    max_errors: int | None = None
    restarts: int = 3
    wandb: str = "off"

    @property
    def replica_size(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.slices * self.stages

    def arguments(self) -> list[str]:
        """The words of the command that mean these options, for the launcher of ranks."""
        words = ["predict", self.model]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "model" or value is None or (field.default is not MISSING and value == field.default):
                continue
            option = "--" + field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(option if value else f"--no-{option[2:]}")
                continue
            for item in value if isinstance(value, tuple) else (value,):
                words += [option, str(item)]
        return words

    def generation(self) -> dict[str, Any]:
        """The settings of generation that the user has given, under the names of GenerationSettings."""
        given = {
            "new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "beams": self.beams,
            "stops": self.stop or None,
            "seed": self.seed,
        }
        return {name: value for name, value in given.items() if value is not None}

    def asked(self) -> dict[str, Any]:
        """What answers depend on besides model and data, as JSON values."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in HOW | NAMED}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


def check_replicas(processes: int, options: PredictOptions) -> None:
    """Raises: UserError for processes of which some belong to no whole replica."""
    size = options.replica_size
    if processes % size:
        started = "1 process is" if processes == 1 else f"{processes} processes are"
        raise UserError(
            f"{started} no whole number of replicas of {size}",
            where=split_option(options),
            remedy=f"Start {size}, {2 * size}, ... processes.",
        )


def split_option(options: PredictOptions) -> str:
    """The option by which several ranks hold one copy of the model."""
    return "--stages" if options.stages > 1 else "--slices"


def check_options(options: PredictOptions) -> None:
    """Raises: UserError for a value that is none of those possible, or options that exclude each other."""
    for name, value, possible in (
        ("wandb", options.wandb, WANDB),
        ("precision", options.precision, PRECISIONS),
        ("quantization", options.quantization, QUANTIZATIONS),
    ):
        if value is not None and value not in possible:
            raise UserError(
                f"{value!r} is not possible", where=f"--{name}", remedy=f"Use one of {', '.join(possible)}."
            )
    ways = [f"--{name}" for name in ("layers", "slices", "stages") if getattr(options, name) > 1]
    if len(ways) > 1:
        raise UserError(
            f"{ways[0]} and {ways[1]} are two ways to hold one model", where=ways[0], remedy="Give one of them."
        )
    if options.embed and options.stages > 1:
        raise UserError(
            "embeddings are not computed in stages", where="--stages", remedy="Leave out --stages or --embed."
        )
    if options.normalize and not options.embed:
        raise UserError("only embeddings are normalized", where="--normalize", remedy="Add --embed, or leave it out.")
    if options.embed and (options.tile or options.block):
        remedy = "Leave out --tile and --block."
        raise UserError("embeddings of pieces are not merged into one", where="--embed", remedy=remedy)
    if options.data.count("-") > 1:
        raise UserError("standard input is given twice", where="--data", remedy="Name - once.")
