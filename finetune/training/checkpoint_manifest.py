"""The manifest of a checkpoint: which files belong to it, with their sizes and digests, and the state of the loop."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.recipe.json_file import read_json

MANIFEST = "manifest.json"
FORMAT = 1
NAME = re.compile(r"step-[0-9]{1,18}")  # of a checkpoint's folder
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a file in it


@dataclass(frozen=True)
class Manifest:
    """step: optimizer steps done. loop: the training loop's own state. files: name -> (bytes, sha256).

    training: what names the training (recipe/identity.py). recipe_digest: the name in the first design; no longer compared.
    """

    step: int
    loop: dict[str, Any]
    scalars: dict[str, Any]
    files: dict[str, tuple[int, str]]
    shapes: dict[str, list[int]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    recipe_digest: str = ""

    def to_json(self) -> str:
        tree = {"format": FORMAT, **self.__dict__}
        return json.dumps({**tree, "digest": digest_of(tree)}, indent=1, sort_keys=True)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises: ValueError, KeyError, TypeError for anything but a whole manifest of this format."""
        tree = read_json(path)
        digest = tree.pop("digest")
        if digest != digest_of(tree):
            raise ValueError("the manifest has changed since it was written (digest differs)")
        if tree.pop("format") != FORMAT:
            raise ValueError(f"not a manifest of format {FORMAT}")
        tree["files"] = {_file_name(name): (int(size), str(digest)) for name, (size, digest) in tree["files"].items()}
        return cls(**tree)


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint on disk."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step


def _file_name(name: str) -> str:
    """Raises: ValueError for one that could leave the folder."""
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"the manifest names a file that is not of this folder: {name!r}")
    return name


def checkpoint_name(step: int) -> str:
    """The name of the folder: 120 -> "step-00000120"."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step that a folder's name says: step-00000120 -> 120. None for other names, such as step-00000120.incomplete, and
    step-00000120-keep, a copy that a user made.
    """
    return int(name.removeprefix("step-")) if NAME.fullmatch(name) else None


def digest_of(tree: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its digest, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
