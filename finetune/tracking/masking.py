"""Secrets are masked at the door: nothing that looks like a key, a token or a password is logged or shown."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"

# `tokenizer`, `pad_token` and `label_key` are no secrets; `token`, `hf_token` and `api_key` are.
_KEY = re.compile(
    r"(^|[_.-])(api_?key|access_?key|private_?key|secret(_?key)?|pass(word|wd|phrase)?|credentials?|authorization)$"
    r"|^(token|(.*[_.-])?(auth|access|hf|hub|api|bearer|refresh|wandb|github)_?token)$",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"(?<![A-Za-z0-9])("
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}|wandb_v\d_\w{20,}|local-[0-9a-f]{40}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
_HEX_KEY = re.compile(r"^[0-9a-f]{40}$")  # a W&B API key; a git commit looks the same, and stands under `revision`
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
_URL_QUERY = re.compile(
    r"([?&](?:token|access_token|api_key|key|signature|sig|X-Amz-Signature)=)[^&\s]+", re.IGNORECASE
)


def mask(value: Any, key: str = "") -> Any:
    """The same structure with secrets replaced by "***", found by the name of the key or by the shape of the value."""
    if isinstance(value, dict):
        return {name: mask(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask(item, key) for item in value]
    if value in (None, "") or isinstance(value, bool):
        return value
    if _KEY.search(key):
        return MASK
    return mask_text(value, key) if isinstance(value, str) else value


def mask_text(text: str, key: str = "") -> str:
    """Secrets inside a line of text replaced by "***"."""
    if _HEX_KEY.match(text) and key not in ("revision", "commit", "sha"):
        return MASK
    return _URL_QUERY.sub(rf"\1{MASK}", _URL_PASSWORD.sub(MASK, _VALUE.sub(MASK, text)))
