"""Tool schemas for all conversations of a recipe, from a JSON file."""

from __future__ import annotations

from pathlib import Path

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.tasks.text.tool_calls import Tool, read_tools


def load_tools(path: str) -> list[Tool]:
    """The schemas in a file, [] for no path. Raises: UserError if it cannot be read or holds no list of schemas."""
    if not path:
        return []
    try:
        return read_tools(Path(path).read_text(encoding="utf-8"), "the file")
    except (OSError, UnicodeDecodeError, BadRow) as error:
        raise UserError(
            f"options.tools: {error}",
            where=path,
            remedy="Give a JSON file with a list of schemas: "
            '[{"type": "function", "function": {"name": ..., "parameters": ...}}].',
        ) from error
