"""Masks what must never be printed, written or logged: keys, tokens, passwords."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"

_SECRET_KEY = re.compile(
    r"(^|[_-])(api[_-]?key|access[_-]?key|auth[_-]?token|token|secret|password|passwd|credentials?)$", re.I
)
_SECRET_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|wandb_v1_\w{16,}|xox[abps]-[\w-]{10,})"
)
_PASSWORD_IN_ADDRESS = re.compile(r"(://)[^/\s@]*:[^/\s@]*@")


def mask(value: Any, key: str = "") -> Any:
    """The value without its secrets; dicts and lists are masked item by item.

    >>> mask("hf_abcdefghijklmnopqrst"), mask({"api_key": "x", "dim": 3}), mask("s3://me:pw@host/a")
    ('***', {'api_key': '***', 'dim': 3}, 's3://***@host/a')
    """
    if isinstance(value, dict):
        return {name: mask(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mask(item, key) for item in value)
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_KEY.search(key):
        return MASK
    return _PASSWORD_IN_ADDRESS.sub(rf"\1{MASK}@", _SECRET_VALUE.sub(MASK, value))
