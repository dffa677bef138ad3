"""Tool calls and tool schemas of conversations, in OpenAI's forms, old and new, as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.values import check_text

Call = dict[
    str, Any
]  # {"type": "function", "function": {"name", "arguments": mapping or JSON text}, "id" if there is one}
Tool = dict[str, Any]


def read_calls(value: Any, where: str) -> list[Call]:
    """The calls of one message: a list, JSON text of one, or a single call; [] for none.

    A call may be bare, {"name", "arguments"}; its arguments a mapping or JSON text of one. where: "message 2".
    Raises: BadRow.
    """
    value = parse_json(value, f"{where} has tool calls that are")
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, (list, tuple)):
        raise BadRow(f"{where} has tool calls that are {type(value).__name__}, not a list")
    return [_read_call(call, where) for call in calls]


def _read_call(call: Any, where: str) -> Call:
    call = parse_json(call, f"{where} has a tool call that is")
    if not isinstance(call, Mapping):
        raise BadRow(f"{where} has a tool call that is {type(call).__name__}, not a mapping")
    function = call.get("function")
    if function is None:
        outer, function = {"id": call.get("id")}, {key: call[key] for key in call if key not in ("id", "type")}
    else:
        outer = {key: value for key, value in call.items() if key not in ("function", "type")}
    if call.get("type") not in (None, "function"):
        raise BadRow(f"{where} calls a tool of type {call['type']!r}; known: function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name.strip():
        raise BadRow(f"{where} has a tool call without a name")
    arguments = function.get("arguments", function.get("parameters"))
    arguments = {} if arguments is None or arguments == "" else arguments
    as_mapping(arguments, f"{where}: the arguments of {name}")
    rest = {key: value for key, value in function.items() if key not in ("arguments", "parameters")}
    return {
        **{key: value for key, value in outer.items() if value is not None},
        "type": "function",
        "function": {**rest, "arguments": arguments},
    }


def as_mapping(arguments: Any, what: str) -> Mapping[str, Any]:
    """Arguments as a mapping. Raises: BadRow if they are neither one nor JSON text of one."""
    value = parse_json(arguments, f"{what} are")
    if not isinstance(value, Mapping):
        raise BadRow(f"{what} are {type(value).__name__}, not a mapping of names to values")
    return value


def with_arguments(calls: list[Call], form: str) -> list[Call]:
    """The calls with arguments in the form that a template wants: "mapping" or "text" (JSON; text stays as it is)."""
    return [{**call, "function": {**call["function"], "arguments": _in_form(call, form)}} for call in calls]


def _in_form(call: Call, form: str) -> Any:
    arguments = call["function"]["arguments"]
    if form == "mapping":
        return dict(as_mapping(arguments, "arguments"))
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def read_tools(value: Any, name: str) -> list[Tool]:
    """Tool schemas: a list, or JSON text of one; [] for none. Bare schemas {"name", "parameters"} get their outer form.

    name: what the message calls them, such as the column. Raises: BadRow.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    value = parse_json(value, f"{name} is")
    tools = [value] if isinstance(value, Mapping) else value
    if not isinstance(tools, (list, tuple)):
        raise BadRow(f"{name} is {type(value).__name__}, not a list of tool schemas")
    return [_read_tool(tool, name) for tool in tools]


def _read_tool(tool: Any, name: str) -> Tool:
    tool = parse_json(tool, f"{name} has a schema that is")
    if not isinstance(tool, Mapping):
        raise BadRow(f"{name} has a schema that is {type(tool).__name__}, not a mapping")
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not function.get("name"):
        raise BadRow(f"{name} has a schema without a name")
    return dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}


def parse_json(value: Any, what: str) -> Any:
    """The value, read if it is JSON text. Raises: BadRow that begins with `what`."""
    if not isinstance(value, str):
        return value
    try:
        value = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{what} text, but not JSON: {error}") from error
    check_text(value, what.rpartition(" ")[0])
    return value


def calls_text(calls: list[Call]) -> str:
    """Calls as lines of JSON, for models that read text alone."""
    return "\n".join(json.dumps(call["function"], ensure_ascii=False) for call in with_arguments(calls, "mapping"))
