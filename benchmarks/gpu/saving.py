"""Saving the state of 1.24B parameters from a GPU: how long training waits, and when the checkpoint is durable.

    python -m benchmarks.gpu.saving                       # 14.9 GB on a GPU, about 25 seconds
    python -m benchmarks.gpu.saving --small               # the same script with a tiny model, on a CPU too

An artificial run: the weights of a Llama in bf16 with their float32 masters and AdamW's two moments, random, under the
engine of `deepspeed: none`. It is saved by the loop's own `Saver`, twice: the first save also allocates its buffers, the
second is that of a stop, whose checkpoint is there before the disk has all of it. Beside it, `torch.save` of a share of the
same tensors, written from the device as trainings commonly do; and what the disk, the digest and each way of having memory
to copy to can do by themselves. Each line is printed as soon as it is measured; the last one is `RESULT {...}`.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.jobs import tell
from benchmarks.gpu.make import SHAPES
from finetune.distributed.engines.engine import EngineOptions
from finetune.distributed.engines.registry import open_engine
from finetune.distributed.session import Session
from finetune.distributed.sharded_state import Shard, initialize_state, own_groups
from finetune.recipe.training import TrainingSection
from finetune.training.checkpoint import Saver
from finetune.training.checkpoint_manifest import checkpoint_name
from finetune.training.checkpoint_writer import write_tensors
from finetune.training.parameter_groups import make_optimizer
from finetune.training.staging import divide

PEER_SHARE = 0.3  # of the bytes, by torch.save: it takes long
DISK_BYTES = 4 * 2**30  # written to see what the disk takes
DISK_THREADS = 8
HOST_BYTES = 2 * 2**30  # of memory that is allocated and copied to
TICK_SECONDS = 0.002  # of the thread that stands for training while a checkpoint is written


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model, on the CPU where there is no GPU")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure (default: the system's)")
    parser.add_argument("--seconds", type=float, default=30.0, help="no new measurement begins after these")
    arguments = parser.parse_args()
    ends = time.monotonic() + arguments.seconds
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-saving-", dir=arguments.folder))
    try:
        measure(folder, small=arguments.small, ends=ends)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, *, small: bool, ends: float) -> None:
    """All lines."""
    engine = open_artificial_run("tiny" if small else "1b")
    shards = list(engine.local_shards())
    count = sum(shard.values.nbytes for shard in shards)
    print(f"{count / 1e9:.2f} GB in {len(shards)} tensors on {engine.session.device}, disk {folder}", flush=True)
    results: dict[str, Any] = {"bytes": count}
    saver = Saver(engine, folder / "checkpoints", training={}, keep=1)
    (folder / "checkpoints").mkdir()
    for step, name in enumerate(("first save", "a stop's save"), 1):
        if time.monotonic() > ends - 3 * results.get("first save", {}).get("durable", 0.0) / 2:
            print(f"{name}: not run, no time left", flush=True)
            continue
        results[name] = save(saver, step, hurry=step > 1)
        show(name, count, results[name])
    saver.close()
    one_part_alone(shards, folder, results)
    for name, work in (("torch.save", save_by_torch), ("disk alone", write_plainly)):
        if time.monotonic() < ends:
            results[name] = work(shards, folder, 64 * 2**20 if small else DISK_BYTES)
            show(name, results[name].pop("bytes"), results[name])
    if engine.session.device.type == "cuda":
        results["host memory"] = host_memory(engine.session.device, HOST_BYTES)
    engine.session.close()
    tell(**results)


def open_artificial_run(shape: str) -> Any:
    """The engine of one rank, with weights, masters and moments as after some steps."""
    hidden, inner, layers, heads, groups, tied, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=tied,
        vocab_size=vocabulary,
        dtype="bfloat16",
    )
    cuda = torch.cuda.is_available()
    session = Session.open(None, precision="bf16", cpu=not cuda)
    with torch.device(session.device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    training = TrainingSection(global_batch=1)
    options = EngineOptions(max_grad_norm=1.0, master_weights=True)
    engine: Any = open_engine("ddp", session, model, lambda module: make_optimizer(module, training, "adamw"), options)
    optimizer = engine.inner_optimizer
    initialize_state(optimizer, own_groups(optimizer), 1)
    for state in optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key].normal_()
    return engine


def save(saver: Saver, step: int, *, hurry: bool) -> dict[str, float]:
    """Seconds until training goes on, until the files are written, until a kill costs nothing, and until all is on the disk.

    held: the longest that another Python thread had to wait meanwhile, as the thread that feeds the GPU would.
    """
    synchronize(saver.session.device)
    with ticking() as longest:
        began = time.perf_counter()
        saver.begin(step, {"step": step}, hurry=hurry)
        waits = time.perf_counter() - began
        longest()
        while saver.busy:
            time.sleep(TICK_SECONDS)
        written = time.perf_counter() - began
        held = longest()
        saver.advance()  # the files are there: rank 0 publishes
        while saver.busy and not (saver.folder / checkpoint_name(step)).is_dir():
            time.sleep(TICK_SECONDS)
        there = time.perf_counter() - began
        saver.finish()
        durable = time.perf_counter() - began
    return {"waits": waits, "written": written, "there": there, "durable": durable, "held": held}


@contextmanager
def ticking() -> Iterator[Callable[[], float]]:
    """A thread that wants Python's lock every TICK_SECONDS. Yields: the longest that it was late, since the last call."""
    late, over = [0.0], threading.Event()

    def tick() -> None:
        before = time.perf_counter()
        while not over.wait(TICK_SECONDS):
            now = time.perf_counter()
            late[0], before = max(late[0], now - before - TICK_SECONDS), now

    def longest() -> float:
        found, late[0] = late[0], 0.0
        return found

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield longest
    finally:
        over.set()
        thread.join()


def one_part_alone(shards: list[Shard], folder: Path, results: dict[str, Any]) -> None:
    """What one thread does for one part: the digest of its bytes, and writing it (with its digest, synced)."""
    part = {name: values.cpu() for name, values in divide(shards)[0].items()}
    count = sum(values.nbytes for values in part.values())
    began = time.perf_counter()
    digest = hashlib.sha256()
    for values in part.values():
        digest.update(values.view(torch.uint8).numpy())
    hashed = time.perf_counter() - began
    began = time.perf_counter()
    write_tensors(folder / "alone.safetensors", part, {})
    wrote = time.perf_counter() - began
    results["one part"] = {"bytes": count, "sha256": hashed, "written": wrote}
    speeds = f"sha256 {count / 1e9 / hashed:.2f} GB/s, written with its digest {count / 1e9 / wrote:.2f} GB/s"
    print(f"one part, one thread: {count / 1e9:.2f} GB, {speeds}", flush=True)


def save_by_torch(shards: list[Shard], folder: Path, limit: int) -> dict[str, float]:
    """The peer: returned is when torch.save is done, durable when its file is synced."""
    chosen, count = {}, 0
    for shard in shards:
        if count < PEER_SHARE * sum(one.values.nbytes for one in shards):
            chosen[f"{shard.key}@{shard.start}"] = shard.values
            count += shard.values.nbytes
    path = folder / "peer.pt"
    synchronize(shards[0].values.device)
    began = time.perf_counter()
    torch.save(chosen, path)
    returned = time.perf_counter() - began
    synced(path)
    durable = time.perf_counter() - began
    path.unlink()
    return {"bytes": count, "waits": returned, "durable": durable}


def host_memory(device: torch.device, count: int) -> dict[str, Any]:
    """GB/s at which memory of each kind is allocated, and then copied to from the device, the first and the second time."""
    source = torch.ones(count, dtype=torch.uint8, device=device)
    found: dict[str, Any] = {}
    for name, make in {
        "pinned by torch": lambda: torch.empty(count, dtype=torch.uint8, pin_memory=True),
        "registered": lambda: registered(count, huge=False),
        "registered, huge pages": lambda: registered(count, huge=True),
        "pageable": lambda: torch.empty(count, dtype=torch.uint8),
    }.items():
        began = time.perf_counter()
        memory = make()
        speeds = [count / 1e9 / (time.perf_counter() - began)]
        for _ in range(2):
            synchronize(device)
            began = time.perf_counter()
            memory.copy_(source, non_blocking=True)
            synchronize(device)
            speeds.append(count / 1e9 / (time.perf_counter() - began))
        if name.startswith("registered"):
            torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
        found[name] = speeds
        print(
            f"{name:24} allocated {speeds[0]:8.2f} GB/s, copied to {speeds[1]:.2f} and {speeds[2]:.2f} GB/s", flush=True
        )
    return found


def registered(count: int, *, huge: bool) -> torch.Tensor:
    """Memory whose pages torch's threads touch before it is pinned."""
    area = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        area.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(area, dtype=torch.uint8).zero_()
    code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), count, 1)
    if int(code):
        print(f"cudaHostRegister: {code}", flush=True)
    return memory


def write_plainly(shards: list[Shard], folder: Path, limit: int) -> dict[str, float]:
    """`limit` bytes of main memory to as many files as there are threads, synced."""
    block = memoryview(torch.randint(0, 256, (16 * 2**20,), dtype=torch.uint8).numpy())
    blocks = max(1, limit // DISK_THREADS // block.nbytes)

    def write(index: int) -> None:
        path = folder / f"plain-{index}"
        with path.open("wb", buffering=0) as file:
            for _ in range(blocks):
                file.write(block)
            os.fsync(file.fileno())
        path.unlink()

    began = time.perf_counter()
    with ThreadPoolExecutor(DISK_THREADS) as pool:
        list(pool.map(write, range(DISK_THREADS)))
    durable = time.perf_counter() - began
    return {"bytes": DISK_THREADS * blocks * block.nbytes, "durable": durable}


def synced(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(name: str, count: int, seconds: dict[str, float]) -> None:
    """A line for people."""
    texts = {
        "waits": "training waits",
        "written": "files written",
        "there": "a kill costs nothing",
        "durable": "durable",
        "held": "Python held for",
    }
    parts = [f"{text} {seconds[key]:.3f} s" for key, text in texts.items() if key in seconds]
    print(
        f"{name:12} {count / 1e9:6.2f} GB  {', '.join(parts)}; {count / 1e9 / seconds['durable']:.2f} GB/s", flush=True
    )


if __name__ == "__main__":
    main()
