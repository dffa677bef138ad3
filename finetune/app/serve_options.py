"""The options of `finetune serve`: what the command line gives, and what of it replicas and the front process get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class ServedSource:
    """What a replica opens; see open_model. name: as clients call it, "" for the recipe's. pixels: of an image, at most.

    pieces: how large images and long texts are cut, see PieceOptions.
    """

    source: str
    checkpoint: str = "best"
    task: str = ""
    precision: str | None = None
    quantization: str | None = None
    trust_remote_code: bool = False
    name: str = ""
    pixels: int = 40_000_000
    pieces: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServeOptions:
    """See the help of the command. Every field is an option of the same name, but `model`, the argument.

    A new option is a field here and an entry of cli/serve_parameters.py.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int | None = None
    layers: int = 1
    checkpoint: str = "best"
    precision: str | None = None
    quantization: str | None = None
    task: str = ""
    name: str = ""
    api_key_env: str = ""
    allow_unauthenticated: bool = False
    allow_host: tuple[str, ...] = ()
    max_body_mib: int = 32
    max_rows: int = 1024
    max_waiting: int = 4096
    max_pixels: int = 40_000_000
    drain_seconds: float = 30.0
    tile: int | None = None
    overlap: float | None = None
    whole_image: bool = True
    max_boxes: int | None = None
    block: int | None = None
    stride: int | None = None
    merge: str | None = None
    max_pieces: int = 1024
    trust_remote_code: bool = False

    @property
    def source(self) -> ServedSource:
        """For each replica."""
        return ServedSource(
            source=self.model,
            checkpoint=self.checkpoint,
            task=self.task,
            precision=self.precision,
            quantization=self.quantization,
            trust_remote_code=self.trust_remote_code,
            name=self.name,
            pixels=self.max_pixels,
            pieces={
                "tile": self.tile,
                "overlap": self.overlap,
                "whole_image": None if self.whole_image else False,
                "max_boxes": self.max_boxes,
                "block": self.block,
                "stride": self.stride,
                "merge": self.merge,
                "most_pieces": self.max_pieces,
            },
        )

    @property
    def limits(self) -> dict[str, Any]:
        """Fields of `Limits`, for the front process."""
        return {
            "body_bytes": self.max_body_mib * MIB,
            "rows": self.max_rows,
            "waiting": self.max_waiting,
            "pixels": self.max_pixels,
            "drain_seconds": self.drain_seconds,
        }
