"""Commands whose many options are the fields of one object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

Options = TypeVar("Options")


def takes_fields(
    kind: type[Options], parameters: Mapping[str, Any]
) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Makes a command that takes each field of a dataclass as a parameter, of a function that takes the object.

    parameters: name of the field -> Annotated[type, typer.Option(...)], in the order of the help page. Defaults are those of
    the fields. A field that is a tuple, () by default, is an option that can be repeated. Raises: TypeError if the names
    are not those of the fields.
    """
    own = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if set(own) != set(parameters):
        raise TypeError(f"parameters and fields of {kind.__name__} differ: {sorted(set(own) ^ set(parameters))}")
    taken = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(own[name]), annotation=annotation)
        for name, annotation in parameters.items()
    ]

    def decorate(function: Callable[[Options], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            values = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in given.items()
                if value is not None or own[name].default is None
            }
            function(kind(**values))

        command.__name__, command.__doc__, command.__module__ = function.__name__, function.__doc__, function.__module__
        command.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
        command.__annotations__ = dict(parameters)
        return command

    return decorate


def _default(field: Field[Any]) -> Any:
    if field.default is MISSING:
        return inspect.Parameter.empty
    return field.default or None if isinstance(field.default, tuple) else field.default
