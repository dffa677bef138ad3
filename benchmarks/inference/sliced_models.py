"""One language model over two ranks, sliced in two ways side by side: transformers' plan with its sharded load, which `finetune
predict --slices` uses, and DeepSpeed's AutoTP (`init_inference`), which slices a model that each rank has loaded whole.

    python -m benchmarks.inference.sliced_models [--rounds 10] [--hidden 512] [--layers 8]

Both models are in the same two ranks, and take turns. Counts come first: memory while loading and after, weights held, calls
and bytes of collectives for each token; then processor time, and how far logits and greedy tokens are from the whole model's.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import torch

from benchmarks.inference import sliced_models  # ranks import it by this name, not as __main__
from finetune.app.asked_model import load_found
from finetune.app.model_sources import find_model
from finetune.distributed.prebuild import choose_cache
from finetune.distributed.session import Session
from finetune.models.placement import Placement
from tests.ranks import Ranks

RANKS, BATCH, LENGTH, NEW_TOKENS = 2, 4, 64, 16
MIB = 1 << 20


class Memory:
    """Resident memory of this process while the block runs, mapped pages of the model's file included, in bytes: before, peak,
    and after.
    """

    def __enter__(self) -> Memory:
        gc.collect()
        self.before = self.peak = resident_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        gc.collect()
        self.after = resident_bytes()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.peak = max(self.peak, resident_bytes())


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))) * 1024


@dataclass
class Side:
    """What one way of slicing does on one rank. calls, sent: of collectives for a batch of BATCH x LENGTH tokens, and the bytes
    of their tensors; step_*: for one token more of each text. difference: of logits, from the whole model's.
    """

    loading_bytes: int
    held_bytes: int
    weight_bytes: int
    calls: int = 0
    sent: int = 0
    step_calls: int = 0
    step_sent: int = 0
    cpu_seconds: float = 0.0
    difference: float = 0.0
    same_tokens: bool = False


def by_plan(folder: str, session: Session) -> torch.nn.Module:
    return load_found(find_model(folder), placement=Placement(slices=RANKS), session=session).module


def by_autotp(folder: str, session: Session) -> torch.nn.Module:
    import deepspeed

    module = load_found(find_model(folder)).module
    engine = deepspeed.init_inference(
        module, tensor_parallel={"tp_size": RANKS}, dtype=torch.float32, replace_with_kernel_inject=False
    )
    return engine.module


def measure(folder: str, rounds: int) -> dict[str, dict[str, Any]]:
    """On a rank."""
    torch.set_num_threads(1)
    session = Session.open(None, precision="fp32", cpu=True, replica_size=RANKS)
    sides, models = {}, {}
    for name, load in (("tp_plan", by_plan), ("AutoTP", by_autotp)):
        with Memory() as memory:
            models[name] = load(folder, session)
        weights = sum(local(weight).numel() * weight.element_size() for weight in models[name].parameters())
        sides[name] = Side(memory.peak - memory.before, memory.after - memory.before, weights)
    tokens = torch.randint(5, 250, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    whole = load_found(find_model(folder)).module
    with torch.inference_mode():
        expected, reply = whole(tokens).logits, generate(whole, tokens)
        for name, model in models.items():
            side = sides[name]
            side.difference = float((local(model(tokens).logits) - expected).abs().max())
            side.same_tokens = torch.equal(generate(model, tokens), reply)
            cache = model(tokens, use_cache=True).past_key_values
            side.calls, side.sent = counted(lambda model=model: model(tokens))
            side.step_calls, side.step_sent = counted(
                lambda model=model, cache=cache: model(tokens[:, :1], past_key_values=cache, use_cache=True)
            )
        for _ in range(rounds):
            for name, model in models.items():
                began = time.process_time()
                model(tokens)
                sides[name].cpu_seconds += (time.process_time() - began) / rounds
    session.wait()
    session.close()
    return {name: asdict(side) for name, side in sides.items()}


def generate(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(tokens)
    return model.generate(tokens, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)


def local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def counted(call: Callable[[], Any]) -> tuple[int, int]:
    """(collectives that `call` begins on this rank, bytes of what it gives to them)."""
    import deepspeed.comm as deepspeed_comm
    import torch.distributed as dist

    found: list[int] = []

    def watched(real: Any) -> Any:
        def collective(*arguments: Any, **named: Any) -> Any:
            given = next(value for value in (*arguments, *named.values()) if torch.is_tensor(value))
            found.append(given.numel() * given.element_size())
            with mock.patch.object(dist, "all_reduce", all_reduce):  # which another collective may call: counted once
                return real(*arguments, **named)

        return collective

    all_reduce = dist.all_reduce
    with ExitStack() as stack:
        for home, name in (
            (dist, "all_reduce"), (dist, "all_gather_into_tensor"), (dist, "reduce_scatter_tensor"),
            (deepspeed_comm, "inference_all_reduce"), (deepspeed_comm, "all_reduce"),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(home, name, watched(getattr(home, name))))
        call()
    return len(found), sum(found)


def write_model(folder: Path, hidden: int, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from finetune.models.tokenizer import load_tokenizer
    from finetune.recipe.model import ModelSection

    tokenizer = load_tokenizer(ModelSection(source="x", init="config", tokenizer="train:300"), lambda: iter(["a text"]))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8_192, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    asked = parser.parse_args()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(choose_cache())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", asked.hidden, asked.layers)
        whole = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
        pool = Ranks(folder)
        try:
            results = pool.options(open_group=False, timeout=300).run(
                RANKS, sliced_models.measure, str(folder / "model"), asked.rounds
            )
        finally:
            pool.close()
    print(f"whole model: {whole / MIB:.1f} MiB of weights; {RANKS} ranks, {BATCH} texts of {LENGTH} tokens")
    for side in ("tp_plan", "AutoTP"):
        for rank, result in enumerate(results):
            found = result[side]
            print(
                f"{side:8s} rank {rank}: loading +{found['loading_bytes'] / MIB:.1f} MiB at most, then "
                f"+{found['held_bytes'] / MIB:.1f} MiB, of them weights {found['weight_bytes'] / MIB:.1f} MiB; "
                f"{found['calls']} collectives, {found['sent'] / (BATCH * LENGTH):,.0f} bytes a token; a further token: "
                f"{found['step_calls']}, {found['step_sent'] / BATCH:,.0f} bytes; {found['cpu_seconds']:.3f} s of processor "
                f"time; logits differ by {found['difference']:.1e}, tokens {'equal' if found['same_tokens'] else 'DIFFER'}"
            )
    ratios = [result["AutoTP"]["cpu_seconds"] / result["tp_plan"]["cpu_seconds"] for result in results]
    print(f"processor time of AutoTP / tp_plan: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
