"""Keys, tokens and passwords: refused in recipes, masked in what is shown.

A recipe never holds one: a literal value under a secret key, and an address with credentials, are faults (`secret_faults`).
So the recipes that are stored are exact, and are read back as they were. What is shown to people (console, logs, errors,
reports, W&B, model cards) is masked by patterns (`mask`), which may hide too much, and never changes what is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

MASK = "***"
SHORTEST = 12  # characters of a variable's value that is hidden: shorter ones, such as "true", are words
_ENDINGS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS")
ENVIRONMENT = "env:"  # env:NAME: the name of a variable in place of a value. Its value is never put in.

_KINDS = "auth|access|api|hub|hf|hugging[_-]?face|bearer|session|security|refresh|wandb|git(hub|lab)|user|login"
_SECRET_KEY = re.compile(
    rf"((^|[_-])(api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|secret|password|passwd|passphrase|credentials?"
    rf"|({_KINDS})[_-]?token)|^token)$",
    re.I,
)
_SECRET_VALUE = re.compile(
    r"(?<![\w-])(?:hf_[A-Za-z0-9]{16,}|sk-(?:proj|ant|svcacct|admin|or-v\d)-[\w-]{16,}|sk-(?=[a-z]*[0-9A-Z])[A-Za-z0-9]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}|wandb_v1_\w{16,}"
    r"|AIza[\w-]{35}|xox[abps]-[\w-]{10,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
)
_HEADER = re.compile(r"\b((?:bearer|basic) )[\w.~+/=-]{16,}", re.I)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)
_USER_IN_ADDRESS = re.compile(r"(\w:/{1,3})[^/\s@\"'<>?#]+@")
_PARAMETER = re.compile(
    r"([?&;](?:[\w-]*(?:token|signature|secret|passw(?:or)?d|credential|api[_-]?key|access[_-]?key|accesskeyid)|sig|key|auth)"
    r"=)[^&#;\s\"'<>]+",
    re.I,
)


def mask(value: Any, key: str = "") -> Any:
    """The value without its secrets, for people; dicts and lists are masked item by item.

    >>> mask("hf_abcdefghijklmnopqrst"), mask({"api_key": "x", "dim": 3}), mask("s3://me:pw@host/a?sig=b")
    ('***', {'api_key': '***', 'dim': 3}, 's3://***@host/a?sig=***')
    """
    if isinstance(value, dict):
        return {name: mask(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mask(item, key) for item in value)
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_KEY.search(key) and not is_reference(value):
        return MASK
    return mask_text(value)


def mask_text(text: str) -> str:
    """A text without what looks like a secret."""
    if ":/" in text:
        text = _USER_IN_ADDRESS.sub(rf"\1{MASK}@", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\1{MASK}", text)
    if " " in text:
        text = _PRIVATE_KEY.sub(MASK, _HEADER.sub(rf"\1{MASK}", text))
    if len(text) >= SHORTEST:
        for secret in _held_by_environment():
            text = text.replace(secret, MASK)
    return _SECRET_VALUE.sub(MASK, text)


def _held_by_environment() -> list[str]:
    """The values of variables such as HF_TOKEN, which a library's error may hold; the longest first."""
    names = [name for name in os.environ if name.upper().endswith(_ENDINGS) and _SECRET_KEY.search(name)]
    found = {os.environ[name] for name in names if len(os.environ[name]) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def is_reference(value: str) -> bool:
    """Is this env:NAME, the name of an environment variable?"""
    return re.fullmatch(rf"{ENVIRONMENT}[A-Za-z_]\w*", value) is not None


def secrets_in(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(path, what it is) of each value that a recipe must not hold. Names of columns and classes are no secret keys."""
    if isinstance(values, (dict, list)):
        for key, item in values.items() if isinstance(values, dict) else enumerate(values):
            yield from secrets_in(item, (*path, key))
    elif isinstance(values, str) and values not in ("", MASK):
        named = "columns" not in path and bool(path) and isinstance(path[-1], str)
        if named and _SECRET_KEY.search(path[-1]) and not is_reference(values):
            yield path, "a secret must not be written into a recipe"
        elif re.match(r"[A-Za-z][\w+.-]*://", values) and mask_text(values) != values:
            yield path, "an address with credentials must not be written into a recipe"
