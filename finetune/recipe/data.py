"""`data:`: where examples come from, what the columns mean, and what happens to a bad row."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from finetune.recipe.formats import FormatName
from finetune.recipe.section import Section


class SourceSection(Section):
    source: str = Field(
        description="File, folder, glob, parallel files such as train.{de,en}, hub id, or builtin:docstrings, "
        "builtin:digits, builtin:shapes. Relative paths are resolved against the recipe file (with --set: against the "
        "current folder).",
        min_length=1,
    )
    format: FormatName = Field(default="auto", description="auto: by the file extension; no extension: a hub id.")
    split: str = Field(
        default="",
        description="Split of a hub or built-in dataset, of a folder whose files or subfolders are named by split, or of a "
        "data.yaml of YOLO. Default: the name of the key.",
    )
    subset: str = Field(
        default="", description="Configuration name of a hub dataset or of a copy of one, such as sst2 of glue."
    )
    revision: str = Field(default="main", description="Branch, tag or commit on the hub.")
    columns: dict[str, str] = Field(default_factory=dict, description="Overrides data.columns for this source.")
    header: list[str] = Field(
        default_factory=list, description="Column names of a csv, tsv, xlsx or conll file that has no header line."
    )
    encoding: str = Field(
        default="utf-8",
        description="Encoding of a text file, such as cp1252 (Excel on Windows). A byte order mark is recognized.",
    )
    sheet: str = Field(default="", description="Sheet of an xlsx workbook. Default: the first.")
    sample_by: Literal["line", "paragraph", "document"] = Field(
        default="line", description="What is a row of a text file: a line, lines up to a blank one, or the whole file."
    )
    images: str = Field(default="", description="Image folder of a coco file. Default: the folder of the file.")
    limit: int | None = Field(default=None, ge=1, description="Use only the first N rows.")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        """Refuses what Python cannot decode text with."""
        try:
            "".encode(value)
        except LookupError:
            raise PydanticCustomError("encoding", "not the name of an encoding") from None
        return value


class DataSection(Section):
    train: tuple[SourceSection, ...] = Field(description="One or more sources, concatenated in order.", min_length=1)
    validation: tuple[SourceSection, ...] = Field(
        default=(), description="Evaluated during training; selects the best one."
    )
    test: tuple[SourceSection, ...] = Field(
        default=(), description="Evaluated once, at the end, with the best weights."
    )
    validation_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Fraction of train held out for validation. A stable hash of each row and the seed decides, so the choice "
        "for existing rows does not change when rows are added.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="Role of the task -> column of the data, such as {text: sentence}."
    )
    limit: int | None = Field(default=None, ge=1, description="Use only the first N training rows.")
    on_bad_row: Literal["error", "skip"] = Field(
        default="error",
        description="What to do with rows that cannot be used. error: stop before the first step. skip: leave them out, and "
        "count and list them.",
    )
    packing: Literal["auto", "none", "padding_free", "packed"] = Field(
        default="auto",
        description="none: padded batches. padding_free: the examples of a micro-batch are concatenated without padding; "
        "attention stays within each example. packed: the same, in full packs; a step takes as many packs as hold "
        "global_batch examples on average. auto: padding_free where the task and "
        "the model allow it (docs/packing.md), none otherwise.",
    )
    capacity: Annotated[int, Field(ge=8, le=100_000_000)] | Literal["auto"] = Field(
        default="auto",
        description="Maximum tokens per pack or padding-free micro-batch. auto: options.max_length; except for causal_lm, "
        "parallel.micro_batch examples of that length; on a GPU with padding_free, measured before the first step.",
    )
    balance_window: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="Number of steps whose examples are grouped by length, which reduces padding. 1: purely random order. "
        "auto: the task's default; with packed, as few as balance the ranks.",
    )
    workers: Annotated[int, Field(ge=0, le=1_024)] | Literal["auto"] = Field(
        default="auto",
        description="Data loader worker processes per rank. auto: 0 for text; for images the cores that ranks leave, up to "
        "4, and with a GPU up to 16.",
        json_schema_extra={"machine": True},
    )

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to evaluate during training: of their own, or held out from `train`."""
        return bool(self.validation or self.validation_fraction)

    @field_validator(
        "train",
        "validation",
        "test",
        mode="before",
        json_schema_input_type=str | SourceSection | list[str | SourceSection],
    )
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """Normalizes `a.jsonl`, `{source: a.jsonl}` and lists of either to a tuple of sources."""
        if value is None:
            return ()
        items = value if isinstance(value, (list, tuple)) else (value,)
        return tuple({"source": item} if isinstance(item, str) else item for item in items)
