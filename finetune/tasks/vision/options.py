"""Options that tasks on images share. Imports neither torch nor transformers."""

from __future__ import annotations

from pydantic import Field, field_validator

from finetune.recipe.section import Section


class ImageOptions(Section):
    value_range: tuple[float, float] | None = Field(
        default=None,
        description="Values that become black and white in images with more than 8 bits per channel, such as [0, 4095] for 12 "
        "bits in 16-bit files. Default: as the file defines; 32-bit integers and floats define no range, and are bad rows.",
    )

    @field_validator("value_range")
    @classmethod
    def _not_empty(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] == value[1]:
            raise ValueError("the two values must differ")
        return value
