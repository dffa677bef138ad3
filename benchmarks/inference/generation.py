"""Continuous batching beside `generate` on batches sorted by length: 48 prompts whose replies have skewed lengths.

    python -m benchmarks.inference.generation [--device cuda] [--rounds 3]

The model is a Llama of random weights, as `finetune predict` computes it (on some CPUs by another library) and, for
`generate`, as transformers does; `generate` on the former is printed as well. How long each reply is does not depend on the
model: the lengths are lognormal, and set as the limit of each row, on both sides. `generate` gets the batch size that is best
for it, of those listed. All sides run in turns.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, StoppingCriteriaList

from finetune.inference.generation.cache_size import choose_cache_size
from finetune.inference.generation.continuous import ContinuousGenerator
from finetune.inference.generation.prompts import PromptRules
from finetune.inference.generation.requests import GenerationSettings
from finetune.models.onednn_linear import use_onednn

PROMPTS, LONGEST, VOCABULARY = 48, 256, 4096
BATCHES = (8, 16, 24, 48)
OUR_LINEARS = "generate by oneDNN"
SHAPES = {  # hidden size, layers, heads
    "cpu": (384, 6, 6),
    "cuda": (2048, 16, 16),
}


class _Tokenizer:
    """The part of a tokenizer that a generator needs; nobody reads the text."""

    pad_token_id = 0

    def __init__(self) -> None:
        self.added_tokens_decoder: dict[int, Any] = {}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return ""


class _Limits:
    """A stopping criterion for `generate`: each row has a length of its own."""

    def __init__(self, limits: Sequence[int], width: int) -> None:
        self._limits, self._width = limits, width

    def __call__(self, ids: Tensor, scores: Any, **options: Any) -> Tensor:
        written = ids.shape[1] - self._width
        return torch.tensor([written >= limit for limit in self._limits], device=ids.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU; more than are free make all sides slow")
    parser.add_argument("--cpu-seconds", action="store_true", help="of the process, where others share the machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    plain, model = _model(device), _model(device)
    changed = use_onednn(model)
    prompts, limits = _rows()
    print(
        f"{PROMPTS} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens; replies: {_describe(limits)}"
    )
    rules = PromptRules(_Tokenizer(), VOCABULARY, frozenset(), most=1024)
    longest = max(map(len, prompts)) + LONGEST
    size = choose_cache_size(model.config, model.dtype, device, longest)
    sides: dict[str, Callable[[], list[list[int]]]] = {
        "continuous batching": lambda: _continuous(model, rules, size, prompts, limits)
    }
    for batch in BATCHES:
        sides[f"generate, batches of {batch}"] = lambda batch=batch: _static(plain, prompts, limits, batch)
    if changed:
        sides[f"{OUR_LINEARS}, batches of {BATCHES[-1]}"] = lambda: _static(model, prompts, limits, BATCHES[-1])
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    written: dict[str, list[list[int]]] = {}
    clock = time.process_time if options.cpu_seconds else time.perf_counter
    for _ in range(options.rounds):
        for name, run in sides.items():
            start = clock()
            written[name] = run()
            seconds[name].append(clock() - start)
    _report(seconds, written, sum(limits))


def _model(device: torch.device) -> Any:
    torch.manual_seed(0)
    hidden, layers, heads = SHAPES[device.type]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=1024,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return LlamaForCausalLM(config).to(device, dtype).eval()


def _rows() -> tuple[list[list[int]], list[int]]:
    draw = random.Random(0)
    prompts = [[draw.randrange(3, VOCABULARY) for _ in range(draw.randint(8, 64))] for _ in range(PROMPTS)]
    limits = [max(2, min(LONGEST, round(math.exp(draw.gauss(math.log(32), 1.0))))) for _ in range(PROMPTS)]
    return prompts, limits


def _describe(limits: Sequence[int]) -> str:
    return f"median {statistics.median(limits):.0f}, mean {statistics.mean(limits):.0f}, longest {max(limits)} tokens"


def _continuous(
    model: Any, rules: PromptRules, size: Any, prompts: Sequence[list[int]], limits: Sequence[int]
) -> list[list[int]]:
    """Opening and closing included."""
    generator = ContinuousGenerator(model, rules, size)
    try:
        requests = [
            generator.submit(prompt, GenerationSettings(new_tokens=limit))
            for prompt, limit in zip(prompts, limits, strict=True)
        ]
        return [list(request.wait().tokens) for request in requests]  # type: ignore[union-attr]
    finally:
        generator.close()


@torch.no_grad()
def _static(model: Any, prompts: Sequence[list[int]], limits: Sequence[int], batch: int) -> list[list[int]]:
    """Sorted by the length of the prompt: that of the reply is not known before."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    replies: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(prompts[row]) for row in rows)
        ids = torch.tensor([[0] * (width - len(prompts[row])) + prompts[row] for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows])
        own = [limits[row] for row in rows]
        made = model.generate(
            ids,
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                max_new_tokens=max(own), do_sample=False, pad_token_id=0, use_cache=True
            ),
            stopping_criteria=StoppingCriteriaList([_Limits(own, width)]),
        )[:, width:].tolist()
        for row, tokens in zip(rows, made, strict=True):
            replies[row] = tokens[: limits[row]]
    return replies


def _report(seconds: dict[str, list[float]], written: dict[str, list[list[int]]], tokens: int) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = written["continuous batching"]
    for name, median in medians.items():
        same = sum(one == other for one, other in zip(written[name], ours, strict=True))
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        print(
            f"{name:34s} {median:7.2f} s ({spread})  {tokens / median:7.1f} tokens/s  {same} of {PROMPTS} replies equal"
        )
    best = min((median, name) for name, median in medians.items() if name.startswith("generate, "))
    print(f"continuous batching is {best[0] / medians['continuous batching']:.2f} x as fast as {best[1]}")


if __name__ == "__main__":
    main()
