"""The rows of the table: what is trained, both sides of it, and the goal that ours has."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import ours
from benchmarks.gpu.jobs import Job, python

Result = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large everything is: as the table says on a GPU, tiny to try the script on a CPU."""

    small: str
    large: str
    length: int
    micro_batch: int
    accumulation: int
    head: tuple[int, int, int]
    pictures: int
    picture_size: int
    picture_batch: int
    steps: int
    matmul: int


GPU = Sizes("1b", "8b", 4096, 4, 4, (8192, 128_256, 2048), 4000, 256, 128, 14, 8192)
CPU = Sizes("tiny", "tiny", 64, 2, 2, (64, 3000, 64), 80, 64, 8, 8, 256)


@dataclass(frozen=True)
class Row:
    """sides: name -> job; the first is ours, the second its peer. judge: results by side -> (met, what it says)."""

    name: str
    title: str
    prepare: list[Job]
    sides: dict[str, Job]
    judge: Callable[[dict[str, Result]], tuple[bool, str]]


def faster(ratio: float, *, memory: float | None = None) -> Callable[[dict[str, Result]], tuple[bool, str]]:
    """Ours is at least `ratio` times as fast as its peer, and needs at most `memory` times its memory."""

    def judge(results: dict[str, Result]) -> tuple[bool, str]:
        mine, peer = list(results.values())[:2]
        speed = mine["tokens_per_second"] / peer["tokens_per_second"]
        share = mine["peak_bytes"] / max(1, peer["peak_bytes"])
        text = f"{speed:.2f} x (goal {ratio:.2f})" + (f", memory {share:.2f} x (goal {memory:.2f})" if memory else "")
        return speed >= ratio and (memory is None or share <= memory), text

    return judge


def make_rows(folder: Path, sizes: Sizes) -> list[Row]:
    """Every row. folder: for models, data, runs and logs."""
    makers = _Makers(folder, sizes)
    return [
        makers.full("full-fp32-masters", "full fine-tuning, fp32 masters", "float32", faster(1.25, memory=1.0)),
        makers.full("full-bf16", "full fine-tuning, pure bf16", "bfloat16", faster(1.05, memory=1.0)),
        makers.packed(),
        makers.lora(),
        makers.head(),
        makers.pictures("resnet-50", "resnet", {}),
        makers.pictures("vit-b", "vit", {"image_size": 224 if sizes is GPU else 32, "patch_size": 16}),
    ]


class _Makers:
    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.sizes = folder, sizes

    def full(self, name: str, title: str, dtype: str, judge: Any) -> Row:
        sizes = self.sizes
        made, model, rows = self._text(sizes.small, "full", 320)
        recipe = self._recipe(model, rows)
        recipe["model"]["dtype"] = dtype
        peer = self._peer(name, model, rows, dtype=dtype, checkpointing=dtype == "float32")
        return Row(
            name, f"{sizes.small}: {title}", made, {"ours": self._ours(name, recipe), "TRL + Liger": peer}, judge
        )

    def packed(self) -> Row:
        sizes = self.sizes
        made, model, rows = self._text(sizes.small, "lognormal", 3000)
        recipe = self._recipe(model, rows)
        recipe["training"]["global_batch"] *= 8  # rows of about an eighth of the length
        recipe["parallel"]["micro_batch"] *= 8
        recipe["model"]["dtype"] = "bfloat16"
        peer = self._peer("packed", model, rows, dtype="bfloat16", packing=True)
        sides = {"ours": self._ours("packed", recipe), "TRL bfd": peer}
        return Row("packed", f"{sizes.small}: lognormal lengths, packed, pure bf16", made, sides, faster(1.25))

    def lora(self) -> Row:
        sizes = self.sizes
        made, model, rows = self._text(sizes.large, "full", 128)
        recipe = self._recipe(model, rows)
        recipe |= {"adapter": {"rank": 16, "alpha": 32}}
        recipe["model"]["gradient_checkpointing"] = True
        recipe["training"]["global_batch"], recipe["parallel"]["micro_batch"] = 8, 2
        peer = self._peer("lora", model, rows, dtype="bfloat16", checkpointing=True, adapter=True, half=True)
        sides = {"ours": self._ours("lora", recipe), "TRL + Liger": peer}
        return Row("lora-8b", f"{sizes.large}: LoRA r16", made, sides, faster(1.15))

    def head(self) -> Row:
        sides = {
            side: Job(
                f"head-{side}", python("benchmarks.gpu.head", side, *self.sizes.head), self.folder / f"head-{side}.log"
            )
            for side in ("ours", "liger", "products")
        }

        def judge(results: dict[str, Result]) -> tuple[bool, str]:
            met, text = faster(1.0, memory=1.1)(results)
            products = results.get("products", {}).get("step_seconds", float("nan"))
            times = results["ours"]["step_seconds"] / products
            return met and times <= 1.5, f"{text}, {times:.2f} x the three products (goal 1.50)"

        tokens, vocabulary, width = self.sizes.head
        return Row("loss-head", f"loss head {tokens} x {vocabulary} x {width}", [], sides, judge)

    def pictures(self, name: str, kind: str, config: dict[str, Any]) -> Row:
        sizes, home = self.sizes, self.folder / "pictures"
        made = self._maker(home, "-", sizes.pictures, "pictures", sizes.picture_size)
        recipe = {
            "task": "image_classification",
            "model": {"source": kind, "init": "config", "config": config},
            "options": {"image_size": 224 if sizes is GPU else 32},
            "data": {"train": str(home)},
            "training": {"steps": 200, "global_batch": sizes.picture_batch, "learning_rate": 1e-4},
            "parallel": {"deepspeed": "none", "micro_batch": sizes.picture_batch},
            "evaluation": {"samples": 0, "every": 200},
            "tracking": {"wandb": "off", "log_every": 1},
        }
        arguments = (json.dumps(config), kind, sizes.picture_batch, 4 * sizes.steps)
        sides = {
            "ours, from JPEG files": self._ours(name, recipe, steps=4 * sizes.steps),
            "plain loop, ready tensors": Job(
                f"{name}-plain", python("benchmarks.gpu.picture_peer", *arguments), self.folder / f"{name}-plain.log"
            ),
        }
        return Row(name, f"{name}: images per second", [made], sides, faster(0.95))

    def _text(self, shape: str, lengths: str, rows: int) -> tuple[list[Job], Path, Path]:
        home, length = self.folder / shape, self.sizes.length
        return [self._maker(home, shape, rows, lengths, length)], home, home / f"{lengths}-{length}.jsonl"

    def _maker(self, home: Path, *arguments: Any) -> Job:
        return Job(f"make {home.name}", python("benchmarks.gpu.make", home, *arguments), self.folder / "make.log")

    def _recipe(self, model: Path, rows: Path) -> dict[str, Any]:
        sizes = self.sizes
        return {
            "task": "causal_lm",
            "model": {"source": str(model)},
            "options": {"format": "text", "train_on": "all", "max_length": sizes.length},
            "data": {"train": str(rows), "packing": "packed", "capacity": sizes.length, "balance_window": 1},
            "training": {
                "steps": 200,
                "global_batch": sizes.micro_batch * sizes.accumulation,
                "learning_rate": 1e-5,
                "precision": "bf16",
            },
            "parallel": {"micro_batch": sizes.micro_batch},
            "evaluation": {"samples": 0, "every": 200},
            "checkpoint": {"keep": 1},
            "tracking": {"wandb": "off", "log_every": 1},
        }

    def _ours(self, name: str, recipe: dict[str, Any], *, steps: int = 0) -> Job:
        return ours.job(name, self.folder, recipe, steps=steps or self.sizes.steps)

    def _peer(
        self,
        name: str,
        model: Path,
        rows: Path,
        *,
        dtype: str,
        checkpointing: bool = False,
        packing: bool = False,
        adapter: bool = False,
        half: bool = False,
    ) -> Job:
        sizes = self.sizes
        asked = {
            "model": str(model), "rows": str(rows), "dtype": dtype, "checkpointing": checkpointing, "packing": packing,
            "adapter": adapter, "length": sizes.length, "steps": sizes.steps, "folder": str(self.folder / "trl"),
            "micro_batch": sizes.micro_batch // (2 if half else 1), "accumulation": sizes.accumulation,
        }  # fmt: skip
        command = python("benchmarks.gpu.trl_peer", json.dumps(asked))
        return Job(f"{name}-trl", command, self.folder / f"{name}-trl.log")


def missing(side: str) -> str:
    """The package that a side needs and that is not installed; "" if none is."""
    package = {"TRL": "trl", "lig": "liger_kernel"}.get(side[:3], "")
    return package if package and importlib.util.find_spec(package) is None else ""
