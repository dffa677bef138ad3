"""Base class of all recipe sections: frozen, unknown keys are errors, and `true` is not the number 1."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """The `description` of each field gives its meaning and unit, so the schema is the manual.

    A field whose json_schema_extra has {"machine": True} says how a training is carried out, not what is trained: it may
    change when a run is resumed (see identity.py).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads `epochs: true` as 1, which is not what the user meant."""
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise PydanticCustomError("bool_type", "true or false is not allowed here")
        return value


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(part) for part in get_args(annotation))
