"""The rows of the table, the most important first: what is trained, both sides of it, and the goal that ours has.

Our text rows are packed, a micro-batch being one pack of as many tokens as the peer's micro-batch has. On one GPU nothing is
sharded, so DeepSpeed is off: weights in bf16 with float32 masters, or in pure bf16.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import ours
from benchmarks.gpu.jobs import Job, python
from benchmarks.gpu.make import SHAPES, parameters

Result = dict[str, Any]
Judge = Callable[[dict[str, Result]], tuple[bool, str]]
OURS = "ours"
SHARE_OF_PEAK = 0.5  # goal of LoRA


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


GPU = Sizes("1b", "8b", 4096, 4, 4, (8192, 128_256, 2048), 1280, 256, 128, 12, 8192)
CPU = Sizes("tiny", "tiny", 64, 2, 2, (64, 3000, 64), 80, 64, 8, 8, 256)
LOG_EVERY = ours.WARM_STEPS  # the peer logs nothing, and each row of our journal waits for the device: 6 of 1,150 ms
SPARE_STEPS = 3  # beyond the timed ones: those that are profiled, and one whose batches are being fetched
PICTURE_STEPS = 100  # far more than loader processes fetch ahead while the first ones start


@dataclass(frozen=True)
class Asked:
    """What the command line says of our side. changes: KEY=VALUE for it. variants: it is run once more for each, with these
    changes in addition. profiles: the prefix of files; None: no profiles.
    """

    changes: Sequence[str] = ()
    variants: Sequence[Sequence[str]] = ()
    profiles: Path | None = None

    def profile(self, name: str) -> Path | None:
        """The file of a job's profile."""
        return None if self.profiles is None else self.profiles.with_name(f"{self.profiles.name}-{name}.profile.txt")


@dataclass(frozen=True)
class Row:
    """prepare: run before the first row; the first job makes the data, and the others need it.
    sides: name -> job; the first is ours, the second its peer.
    judge: results by side -> (met, what it says).
    flops: of the model for a token, by what they count; the first of them is judged.
    """

    name: str
    title: str
    prepare: list[Job]
    sides: dict[str, Job]
    judge: Judge
    flops: dict[str, float] = field(default_factory=dict)


def faster(ratio: float, *, memory: float | None = None) -> Judge:
    """Ours is at least `ratio` times as fast as its peer, and needs at most `memory` times its memory."""

    def judge(results: dict[str, Result]) -> tuple[bool, str]:
        mine, peer = list(results.values())[:2]
        speed = mine["tokens_per_second"] / peer["tokens_per_second"]
        share = mine["peak_bytes"] / max(1, peer["peak_bytes"])
        text = f"{speed:.2f} x (goal {ratio:.2f})" + (f", memory {share:.2f} x (goal {memory:.2f})" if memory else "")
        return speed >= ratio and (memory is None or share <= memory), text

    return judge


def flops_per_token(shape: str, length: int, *, frozen: bool) -> dict[str, float]:
    """Of a forward and a backward pass, by definition; what checkpointing computes twice is not counted.

    "4N" (frozen weights need no gradients: 2N forward, 2N for the gradients of inputs) or "6N", N being all parameters, as
    published figures count. "products": those of the matrices that a token is multiplied with, so not of an embedding that
    is only looked up, and of causal attention.
    """
    hidden, _, layers, _, _, tied, vocabulary = SHAPES[shape]
    factor, count = (4 if frozen else 6), parameters(shape)
    attention = 3 * 2 * layers * length * hidden  # half of 2 * 2 * length * hidden, forward; twice that, backward
    multiplied = count - (0 if tied else vocabulary * hidden)
    return {f"{factor}N": float(factor * count), "products": float(factor * multiplied + attention)}


def make_rows(folder: Path, sizes: Sizes, asked: Asked | None = None) -> list[Row]:
    """Every row. folder: for models, data, runs and logs."""
    makers = _Makers(folder, sizes, asked or Asked())
    tokens = sizes.head[0]
    vit = {"image_size": 224, "patch_size": 16}
    if sizes.small == "tiny":
        vit |= {"image_size": 32, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return [
        makers.full("full-fp32-masters", "full fine-tuning, fp32 masters", "float32", faster(1.25, memory=1.0)),
        makers.full("full-bf16", "full fine-tuning, pure bf16", "bfloat16", faster(1.05, memory=1.0)),
        makers.lora(),
        makers.lora(checkpointing=False),
        makers.packed(),
        makers.head("loss-head", tokens),
        makers.head("loss-head-large", 2 * tokens),
        makers.pictures("resnet-50", "resnet", {}),
        makers.pictures("vit-b", "vit", vit),
    ]


class _Makers:
    def __init__(self, folder: Path, sizes: Sizes, asked: Asked) -> None:
        self.folder, self.sizes, self.asked = folder, sizes, asked
        self.rows_of_text = sizes.micro_batch * sizes.accumulation * (sizes.steps + SPARE_STEPS)

    def full(self, name: str, title: str, dtype: str, judge: Judge) -> Row:
        """Beside float32 weights, which a peer can only train with checkpointing, ours keeps what `light` keeps of one row
        at a time: as many bytes, and no matrix product twice.
        """
        sizes, checkpointing = self.sizes, dtype == "float32"
        made, model, rows = self._text(sizes.small, "full", self.rows_of_text)
        recipe = self._recipe(model, rows)
        if checkpointing:
            recipe["model"]["gradient_checkpointing"] = "light"
            recipe["parallel"]["micro_batch"], recipe["data"]["capacity"] = 1, sizes.length
        else:
            recipe["model"]["dtype"] = dtype
        peer = self._peer(name, model, rows, dtype=dtype, checkpointing=checkpointing)
        flops = flops_per_token(sizes.small, sizes.length, frozen=False)
        return self._row(name, f"{sizes.small}: {title}", made, recipe, {"TRL + Liger": peer}, judge, flops)

    def packed(self) -> Row:
        sizes = self.sizes
        made, model, rows = self._text(sizes.small, "lognormal", self.rows_of_text * 9)
        recipe = self._recipe(model, rows)
        recipe["training"]["global_batch"] *= 8  # rows of about an eighth of the length
        recipe["model"]["dtype"] = "bfloat16"
        peer = {"TRL bfd": self._peer("packed", model, rows, dtype="bfloat16", packing=True)}
        title = f"{sizes.small}: lognormal lengths, packed, pure bf16"
        return self._row("packed", title, made, recipe, peer, faster(1.25), {})

    def lora(self, *, checkpointing: bool = True) -> Row:
        sizes, name = self.sizes, "lora-8b" if checkpointing else "lora-8b-stored"
        made, model, rows = self._text(sizes.large, "full", self.rows_of_text // 2)
        recipe = self._recipe(model, rows)
        recipe |= {"adapter": {"rank": 16, "alpha": 32}}
        recipe["model"]["gradient_checkpointing"] = checkpointing
        recipe["training"]["global_batch"] //= 2
        recipe["parallel"]["micro_batch"] //= 2
        recipe["data"]["capacity"] //= 2
        peer = self._peer(name, model, rows, dtype="bfloat16", checkpointing=checkpointing, adapter=True, half=True)

        def judge(results: dict[str, Result]) -> tuple[bool, str]:
            met, text = faster(1.15)(results)
            share = next(iter(results[OURS].get("shares_of_peak", {}).values()), None)
            if share is None:
                return met, f"{text}, share of the peak not measured"
            return met and share >= SHARE_OF_PEAK, f"{text}, {share:.0%} of the peak (goal {SHARE_OF_PEAK:.0%})"

        flops = flops_per_token(sizes.large, sizes.length, frozen=True)
        title = f"{sizes.large}: LoRA r16" + ("" if checkpointing else ", all activations kept")
        return self._row(name, title, made, recipe, {"TRL + Liger": peer}, judge, flops)

    def head(self, name: str, tokens: int) -> Row:
        _, vocabulary, width = self.sizes.head
        sides = {}
        for side in (OURS, "liger", "products"):
            command = python("benchmarks.gpu.head", side, tokens, vocabulary, width)
            sides[side] = Job(f"{name}-{side}", command, self.folder / f"{name}-{side}.log", early=True)

        def judge(results: dict[str, Result]) -> tuple[bool, str]:
            met, text = faster(1.0, memory=1.1)(results)
            products = results.get("products", {}).get("step_seconds", float("nan"))
            times = results[OURS]["step_seconds"] / products
            return met and times <= 1.5, f"{text}, {times:.2f} x the three products (goal 1.50)"

        return Row(name, f"loss head {tokens} x {vocabulary} x {width}", [], sides, judge)

    def pictures(self, name: str, kind: str, config: dict[str, Any]) -> Row:
        sizes, home = self.sizes, self.folder / "pictures"
        made = self._maker(home, "-", sizes.pictures, "pictures", sizes.picture_size)
        recipe = {
            "task": "image_classification",
            "model": {"source": kind, "init": "config", "config": config},
            "options": {"image_size": 32 if sizes.small == "tiny" else 224},
            "data": {"train": str(home)},
            "training": {"steps": 400, "global_batch": sizes.picture_batch, "learning_rate": 1e-4},
            "parallel": {"deepspeed": "none", "micro_batch": sizes.picture_batch},
            "evaluation": {"samples": 0, "every": 400},
            "checkpoint": {"every": 400},  # not every 10 steps, which are an epoch
            "tracking": {"wandb": "off", "log_every": 10},  # as a plain loop, it does not wait for each step's loss
        }
        steps, mine = 5 * sizes.steps, 20 if sizes.small == "tiny" else PICTURE_STEPS
        command = python("benchmarks.gpu.picture_peer", json.dumps(config), kind, sizes.picture_batch, steps)
        peer = Job(f"{name}-plain", command, self.folder / f"{name}-plain.log", early=True)
        sides = {
            f"{side}, from JPEG files": job
            for side, job in self._ours(name, recipe, steps=mine, rate=ours.IMAGES).items()
        }
        first = next(iter(sides))
        sides = {first: sides.pop(first), "plain loop, ready tensors": peer, **sides}
        prepared = self._prepared(made.name, name, recipe)
        return Row(name, f"{name}: images per second", [made, *prepared], sides, faster(0.95))

    def _row(
        self,
        name: str,
        title: str,
        made: list[Job],
        recipe: dict[str, Any],
        peer: dict[str, Job],
        judge: Judge,
        flops: dict[str, float],
    ) -> Row:
        sides = self._ours(name, recipe, steps=self.sizes.steps)
        return Row(
            name,
            title,
            [*made, *self._prepared(made[0].name, name, recipe)],
            {OURS: sides.pop(OURS), **peer, **sides},
            judge,
            flops,
        )

    def _ours(self, name: str, recipe: dict[str, Any], *, steps: int, rate: str = ours.TOKENS) -> dict[str, Job]:
        """Our side, and its variants."""
        sides = {}
        for number, variant in enumerate([(), *self.asked.variants]):
            changes = [*self.asked.changes, *variant]
            own = f"{name}-{number}" if number else name
            sides[" ".join([OURS, *variant])] = ours.job(
                own, self.folder, recipe, steps=steps, rate=rate, changes=self._with_capacity(recipe, changes),
                profile=self.asked.profile(own),
            )  # fmt: skip
        return sides

    def _prepared(self, data: str, name: str, recipe: dict[str, Any]) -> list[Job]:
        """Our preparation of the data, which trainings find; where it fails, the training does it, and tells why."""
        jobs = {}
        for number, variant in enumerate([(), *self.asked.variants]):
            changes = self._with_capacity(recipe, [*self.asked.changes, *variant])
            shaping = " ".join(change for change in changes if change.startswith(("data.", "options.")))
            command = python("finetune", "prepare", self.folder / f"{name}.yaml")
            for change in changes:
                command += ["--set", change]
            log, own = self.folder / f"prepare-{name}-{number}.log", f"{data}, prepared {shaping}".strip()
            jobs.setdefault(own, Job(own, command, log, salvage=lambda: {"prepared": True}))
        return list(jobs.values())

    def _with_capacity(self, recipe: dict[str, Any], changes: list[str]) -> list[str]:
        """A pack has as many tokens as the micro-batch has rows of the full length, where nothing else is said."""
        keys = dict(change.split("=", 1) for change in changes)
        micro = keys.get("parallel.micro_batch", "")
        if "capacity" not in recipe["data"] or "data.capacity" in keys or not micro.isdigit():
            return changes
        return [*changes, f"data.capacity={int(micro) * self.sizes.length}"]

    def _text(self, shape: str, lengths: str, rows: int) -> tuple[list[Job], Path, Path]:
        home, length = self.folder / shape, self.sizes.length
        return [self._maker(home, shape, rows, lengths, length)], home, home / f"{lengths}-{rows}-{length}.jsonl"

    def _maker(self, home: Path, *arguments: Any) -> Job:
        name = "-".join(map(str, ("make", home.name, *arguments[1:])))
        return Job(name, python("benchmarks.gpu.make", home, *arguments), self.folder / f"{name}.log")

    def _recipe(self, model: Path, rows: Path) -> dict[str, Any]:
        sizes = self.sizes
        return {
            "task": "causal_lm",
            "model": {"source": str(model), "init": "config", "init_device": "gpu"},
            "options": {"format": "text", "train_on": "all", "max_length": sizes.length},
            "data": {
                "train": str(rows),
                "packing": "packed",
                "capacity": sizes.micro_batch * sizes.length,
                "balance_window": 1,
            },
            "training": {
                "steps": 200,
                "global_batch": sizes.micro_batch * sizes.accumulation,
                "learning_rate": 1e-5,
                "precision": "bf16",
            },
            "parallel": {"deepspeed": "none", "micro_batch": sizes.micro_batch},
            "evaluation": {"samples": 0, "every": 200},
            "checkpoint": {"keep": 1, "every": 200},
            "tracking": {"wandb": "off", "log_every": LOG_EVERY},
        }

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
            "profile": None if (profile := self.asked.profile(f"{name}-trl")) is None else str(profile),
        }  # fmt: skip
        command = python("benchmarks.gpu.trl_peer", json.dumps(asked))
        return Job(f"{name}-trl", command, self.folder / f"{name}-trl.log", early=True)


def missing(side: str) -> str:
    """The package that a side needs and that is not installed; "" if none is."""
    package = {"TRL": "trl", "lig": "liger_kernel"}.get(side[:3], "")
    return package if package and importlib.util.find_spec(package) is None else ""
