"""Tensors of a checkpoint, by name and range, from whichever of its files hold them; only what is asked for is read."""

from __future__ import annotations

import math
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from finetune.distributed.sharded_state import Shard
from finetune.errors import UserError
from finetune.training.checkpoint_manifest import Checkpoint


class CheckpointTensors:
    """Ranges of stored tensors, read from whichever files hold them; only the ranges asked for are read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files: list[Any] = []
        self._shards: dict[str, list[tuple[int, int, Any, str]]] = {}
        self._columns: dict[str, dict[tuple[int, int], list[tuple[int, int, Any, str]]]] = {}

    def __enter__(self) -> CheckpointTensors:
        for name in self._checkpoint.manifest.files:
            if not name.endswith(".safetensors"):
                continue
            try:
                opened = safe_open(self._checkpoint.path / name, framework="pt", device="cpu").__enter__()
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"cannot read the checkpoint: {error}", where=str(self._checkpoint.path / name)
                ) from None
            self._files.append(opened)
            for stored in opened.keys():  # noqa: SIM118 (not a dict)
                key, columns, start = parse_name(stored)
                found = self._columns.setdefault(key, {}).setdefault(columns, []) if columns else self._of(key)
                numel = opened.get_slice(stored).get_shape()[0]
                found.append((start, start + numel, opened, stored))
        for found in self._shards.values():
            found.sort(key=lambda shard: shard[0])
        return self

    def __exit__(self, *exception: object) -> None:
        for opened in self._files:
            opened.__exit__(None, None, None)

    def _of(self, key: str) -> list[tuple[int, int, Any, str]]:
        return self._shards.setdefault(key, [])

    @property
    def keys(self) -> set[str]:
        return set(self._shards) | set(self._columns)

    def read(self, key: str, start: int, numel: int) -> torch.Tensor:
        """Flat range [start, start + numel) of `key`. Raises: UserError if it is not stored."""
        if key in self._columns:
            return self._read_columns(key, start, numel)
        end, at, parts = start + numel, start, []
        for low, high, opened, stored in self._shards.get(key, ()):
            if low <= at < high and low < end:  # behind a gap, it would be read from its end
                parts.append(opened.get_slice(stored)[at - low : min(end, high) - low])
                at = min(end, high)
        if at != end:
            raise self._lacking(key, start, end)
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)

    def _read_columns(self, key: str, start: int, numel: int) -> torch.Tensor:
        """The same, of a matrix that was stored in groups of columns: whole rows are assembled, then cut."""
        of = self._checkpoint.manifest.shapes[key][1]
        top, bottom = start // of, -(-(start + numel) // of)
        rows, missing = torch.empty(bottom - top, of), (bottom - top) * of
        for (first, last), shards in self._columns[key].items():
            low, width = top * (last - first), last - first
            group = torch.empty((bottom - top) * width)
            for begin, end, opened, stored in shards:
                begins, ends = max(begin, low), min(end, low + group.numel())
                if begins < ends:
                    values = opened.get_slice(stored)[begins - begin : ends - begin]
                    group[begins - low : ends - low] = values
                    missing -= ends - begins
            rows[:, first:last] = group.view(-1, width)
        if missing:
            raise self._lacking(key, start, start + numel)
        return rows.view(-1)[start - top * of :][:numel]

    def _lacking(self, key: str, start: int, end: int) -> UserError:
        return UserError(
            f"the checkpoint does not hold {key}[{start}:{end}]",
            where=str(self._checkpoint.path),
            remedy="The model or optimizer of the recipe has changed since it was written: start with --resume never.",
        )

    def whole(self, key: str) -> torch.Tensor:
        """The tensor `key` in its own shape."""
        shape = self._checkpoint.manifest.shapes[key]
        return self.read(key, 0, math.prod(shape)).reshape(shape)


def shard_name(shard: Shard) -> str:
    """The name of a shard in its file: "w@64", or "w[16:32]@0" for a group of columns."""
    columns = f"[{shard.columns[0]}:{shard.columns[1]}]" if shard.columns else ""
    return f"{shard.key}{columns}@{shard.start}"


def parse_name(stored: str) -> tuple[str, tuple[int, int] | None, int]:
    """Key, columns and start: "w[16:32]@0" -> ("w", (16, 32), 0)."""
    key, _, start = stored.rpartition("@")
    if key.endswith("]"):
        key, _, columns = key[:-1].rpartition("[")
        first, last = columns.split(":")
        return key, (int(first), int(last)), int(start)
    return key, None, int(start)
