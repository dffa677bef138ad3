"""`data:` — where examples come from, which columns mean what, and what happens to a bad row."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from finetune.recipe.section import Section

FileFormat = Literal[
    "auto",
    "jsonl",
    "json",
    "csv",
    "tsv",
    "conll",
    "parallel",
    "parquet",
    "arrow",
    "imagefolder",
    "coco",
    "hub",
    "builtin",
]


class SourceSection(Section):
    source: str = Field(
        description="File, folder, glob, parallel files such as train.{de,en}, hub id, or builtin:docstrings, "
        "builtin:digits, builtin:shapes. Relative paths are relative to the recipe file (given with --set: to the "
        "current folder).",
        min_length=1,
    )
    format: FileFormat = Field(default="auto", description="auto: by the ending of the name; no ending: a hub id.")
    split: str = Field(default="", description="Split of a hub or builtin set; default: train, validation or test.")
    subset: str = Field(default="", description="Configuration of a hub set, such as sst2 of glue.")
    revision: str = Field(default="main", description="Branch, tag or commit on the hub.")
    columns: dict[str, str] = Field(default_factory=dict, description="Overrides data.columns for this source.")
    header: list[str] = Field(
        default_factory=list, description="Column names of a csv, tsv or conll file whose first line is a row already."
    )
    images: str = Field(default="", description="Folder of the images of a coco file; default: the file's own folder.")
    limit: int | None = Field(default=None, ge=1, description="Take only the first so many rows.")


class DataSection(Section):
    train: tuple[SourceSection, ...] = Field(description="One source or several, joined in order.", min_length=1)
    validation: tuple[SourceSection, ...] = Field(default=(), description="Evaluated while training; chooses `best`.")
    test: tuple[SourceSection, ...] = Field(default=(), description="Evaluated once, at the end, on the best weights.")
    validation_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of train held out as validation, chosen by a stable hash of each row (seed included), "
        "so that it does not change when rows are added.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="Role -> column of the data, such as {text: sentence, label: label}."
    )
    limit: int | None = Field(default=None, ge=1, description="Take only the first so many training rows.")
    on_bad_row: Literal["error", "skip"] = Field(
        default="error",
        description="A row that cannot be used: stop before the first step, or skip, count and list it.",
    )
    packing: Literal["auto", "none", "padding_free", "packed"] = Field(
        default="auto",
        description="none: padded batches. padding_free: the examples of a micro-batch laid end to end, none seeing "
        "another. packed: the same, and a step is so many full packs that they hold global_batch examples on average. "
        "auto: the task's own (padding_free for language models, none for the rest).",
    )
    capacity: Annotated[int, Field(ge=8)] | Literal["auto"] = Field(
        default="auto", description="Tokens of a pack, or of a padding-free micro-batch; auto: options.max_length."
    )
    balance_window: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="So many steps share out their examples by length, so that batches are alike and padding is cut; "
        "1: purely random. auto: 1 where nothing is padded, else the task's own.",
    )
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description="Background loader processes a rank; auto: 0 for text, up to 4 for images.",
        json_schema_extra={"machine": True},
    )

    @field_validator(
        "train",
        "validation",
        "test",
        mode="before",
        json_schema_input_type=str | SourceSection | list[str | SourceSection],
    )
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """`a.jsonl`, `{source: a.jsonl}` and lists of either all mean a tuple of sources."""
        if value is None:
            return ()
        items = value if isinstance(value, (list, tuple)) else (value,)
        return tuple({"source": item} if isinstance(item, str) else item for item in items)
