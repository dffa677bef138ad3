"""The base of every section of a recipe: frozen, and no unknown key."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Each field's meaning and unit stand in its `description`, so that the schema is the manual."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
