"""How large the cache of continuous batching is: chosen here, as the manager's default takes 60 to 90 % of the memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from finetune.data.prepare.memory import available_bytes

PAGE = 32  # tokens; the last page of a request is half empty on average
CPU_SHARE, GPU_SHARE = 0.25, 0.6  # of the memory that is free once the model is loaded
CPU_SLOTS, GPU_SLOTS = 16, 64
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 512, 2048

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "memory footprint")


@dataclass(frozen=True)
class CacheSize:
    """slots: requests written at the same time. batch_tokens: tokens of one forward pass; longer prompts are read in
    several. blocks: of `page` tokens of all layers.
    """

    slots: int
    batch_tokens: int
    blocks: int
    page: int = PAGE

    @property
    def tokens(self) -> int:
        """Of all requests together; no request can be longer."""
        return self.blocks * self.page

    def halved(self) -> CacheSize:
        """Half as many requests in half as much memory; after it ran out."""
        return replace(
            self,
            slots=max(1, self.slots // 2),
            batch_tokens=max(16, self.batch_tokens // 2),
            blocks=max(2, self.blocks // 2),
        )


def choose_cache_size(
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    longest: int,
    *,
    memory: int | None = None,
    page: int = PAGE,
    slots: int = 0,
) -> CacheSize:
    """config: of the text model. longest: tokens of the longest prompt and its reply. memory: bytes; None: a share of what
    is free on the device.

    The cache holds `longest` tokens for every slot where the memory allows it. Where it does not hold them once, longer
    requests are refused one by one.
    """
    on_gpu = device.type == "cuda"
    slots = slots or (GPU_SLOTS if on_gpu else CPU_SLOTS)
    batch_tokens = GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS
    if memory is None:
        memory = _free_memory(device)
    batch_tokens = max(slots, min(batch_tokens, slots * longest))
    fixed = slots * int(config.vocab_size) * 4 * 4 + batch_tokens * batch_tokens * dtype.itemsize
    wanted = -(-longest // page) * slots + 2
    affordable = (memory - fixed) // (page * bytes_per_token(config, dtype, batch_tokens))
    return CacheSize(slots, batch_tokens, int(max(2, min(wanted, affordable))), page)


def bytes_per_token(config: Any, dtype: torch.dtype, batch_tokens: int) -> int:
    """Of the cache: keys and values of all layers, the copy that one layer reads, and the column of the attention mask."""
    heads = int(config.num_attention_heads)
    kept = int(getattr(config, "num_key_value_heads", None) or heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    elements = (2 * int(config.num_hidden_layers) * kept + 2 * heads + kept) * head_size + batch_tokens
    return elements * dtype.itemsize + 8


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    return int(available_bytes() * CPU_SHARE)


def is_out_of_memory(message: str) -> bool:
    """Whether an error is one of memory: of a GPU, of torch's allocator on a CPU, or of the manager's own check."""
    return any(words in message.lower() for words in _MEMORY_WORDS)
