"""Attention over several concatenated sequences, each of which attends only to itself.

Registered through transformers' interfaces (AttentionInterface, AttentionMaskInterface) under the name "segmented". Where
a call brings `cu_seq_lens_q` (the borders), each segment attends to itself alone, so the cost is the sum of squares and
not the square of the sum; any other call (padded batches, generation with a cache) is ordinary SDPA.

Shapes: B = 1 (packed), H heads, K key-value heads, T tokens of all segments, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import torch

from finetune.errors import UserError
from finetune.models.attention_kernels import FLASH_HEAD, HALF, cudnn_first, prefers_cudnn
from finetune.models.segment_blocks import as_rows, attend_in_blocks
from finetune.models.shared_tokens import SharedTokens

if TYPE_CHECKING:
    from torch import nn

NAME = "segmented"
_BORDERS = "cu_seq_lens_q"


def packing_obstacle(model_class: Any, config: Any, attention: str = "") -> UserError | None:
    """Why a model's attention cannot be kept inside the examples of a pack; None where it can. No model is built.

    model_class: what is built for `config`, such as LlamaForCausalLM. attention: `model.attention` of the recipe.
    flash_attention_2 takes packed batches itself.
    """
    if "flash_attention_2" in (attention, getattr(config, "_attn_implementation", None)):
        return None
    kind = getattr(config, "model_type", getattr(model_class, "__name__", "model"))
    if not getattr(model_class, "_supports_attention_backend", False) or _recurrent(config):
        return UserError(
            f"the attention of a {kind} model cannot be kept inside the examples of a pack",
            where="data.packing",
            remedy="Set data.packing: none (padded batches, balanced by length).",
        )
    for part in (config, getattr(config, "text_config", config)):
        if getattr(part, "attn_logit_softcapping", None):
            return UserError(
                f"a {kind} model caps its attention scores, which the packed kernels do not",
                where="data.packing",
                remedy="Set data.packing: none, or model.attention: flash_attention_2 on a GPU.",
            )
    return None


def can_share_tokens(config: Any, attention: str = "") -> bool:
    """Whether segments may share tokens (models/shared_tokens.py), for a model that has no `packing_obstacle`."""
    flash = "flash_attention_2" in (attention, getattr(config, "_attn_implementation", None))
    causal = getattr(config, "is_causal", True) and not getattr(config, "use_bidirectional_attention", False)
    return causal and not flash


def use_segmented_attention(model: nn.Module) -> None:
    """Let `model` take packed batches. A model that uses flash_attention_2 takes them already.

    Raises: UserError where the architecture does not support it (state-space layers, relative biases).
    """
    config: Any = model.config
    if (obstacle := packing_obstacle(type(model), config)) is not None:
        raise obstacle
    if config._attn_implementation != "flash_attention_2":
        _register()
        model.set_attn_implementation(NAME)  # type: ignore[operator]
    model.register_forward_pre_hook(_begin, with_kwargs=True)
    model.register_forward_hook(_end, always_call=True)


_packed: list[bool] = []  # whether the calls of models that are under way are packed, the innermost last


def _begin(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    _packed.append(named.get(_BORDERS) is not None)


def _end(module: nn.Module, arguments: Any, outputs: Any) -> None:
    _packed.pop()


def _without_search(find: Callable[..., Any]) -> Callable[..., Any]:
    """transformers looks for restarts in the positions of a packed batch, and asks the device whether there are any, to make
    a mask that packed batches do not get.
    """

    @wraps(find)
    def find_packed_sequence_indices(*arguments: Any, **named: Any) -> Any:
        return None if _packed and _packed[-1] else find(*arguments, **named)

    return find_packed_sequence_indices


def _recurrent(config: Any) -> bool:
    layers = getattr(config, "layer_types", None) or []
    return any(kind not in ("full_attention", "sliding_attention") for kind in layers)


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
    from transformers.masking_utils import sdpa_mask

    def mask(*arguments: Any, **options: Any) -> torch.Tensor | None:
        """Packed batches have no attention mask: the borders replace it."""
        return None if options.get("attention_mask") is None else sdpa_mask(*arguments, **options)

    AttentionInterface.register(NAME, segmented_attention)
    AttentionMaskInterface.register(NAME, mask)
    if hasattr(masking_utils, "find_packed_sequence_indices"):  # not a public function: without it, nothing is spared
        masking_utils.find_packed_sequence_indices = _without_search(masking_utils.find_packed_sequence_indices)


@cache
def leave_attention_uncompiled() -> None:
    """torch.compile calls packed attention as it is: which kernels it calls depends on the values of the borders."""
    from transformers import AttentionInterface

    _register()
    AttentionInterface.register(NAME, torch.compiler.disable(segmented_attention))


def segmented_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, H, T, D], key and value [B, K, T, D] -> ([B, T, H, D], None).

    cu_seq_lens_q: int32 [segments + 1], the borders, first 0 and last T. sliding_window: positions that a token sees,
    itself included. Where segments share tokens (SharedTokens.of(options)), borders are those of its places.
    """
    borders = options.get(_BORDERS)
    if borders is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    causal = bool(getattr(module, "is_causal", True))
    shared, dtype = SharedTokens.of(options), _kernel_dtype(query)
    if shared is not None and not causal:
        raise RuntimeError("segments share tokens, which needs causal attention")
    if dropout == 0.0 and dtype is not None:
        longest = int(options["max_length_q"])
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        return _varlen(query, key, value, borders, longest, scaling, sliding_window, causal, shared), None
    result = attend_in_blocks(
        query,
        key,
        value,
        borders,
        causal=causal,
        window=sliding_window,
        dropout=dropout,
        scaling=scaling,
        shared=shared,
    )
    return result, None


def _kernel_dtype(query: torch.Tensor) -> torch.dtype | None:
    """The dtype in which torch's variable-length flash attention computes this: half precision, heads of a multiple of 8 up
    to 256, Ampere or newer; None where it does not support it. As SDPA does, it follows autocast, under which rotary
    embeddings leave query and key in float32 beside a value in half precision.
    """
    size = query.shape[-1]
    if size > FLASH_HEAD or size % 8 or not _has_ampere(query.device):
        return None
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    return dtype if dtype in HALF else None


def _has_ampere(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _takes_enable_gqa(varlen_attn: Callable[..., Any]) -> bool:
    """torch 2.12 and later need an argument for fewer key-value heads; torch 2.11 has no such argument, and its kernel
    takes them as they are.
    """
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
    causal: bool,
    shared: SharedTokens | None,
) -> torch.Tensor:
    """One call of torch's own variable-length flash attention for all segments. query, key, value: half precision, of one
    dtype.
    """
    if shared is None and (window is None or window >= longest) and query.shape[2] == (len(borders) - 1) * longest:
        return _equal_segments(query, key, value, longest, scaling, causal)
    from torch.nn.attention.varlen import varlen_attn

    left = -1 if window is None else window - 1
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if _takes_enable_gqa(varlen_attn) else {}
    rows = (as_rows(tensor) for tensor in (query, key, value))
    queries, keys, values = (x.contiguous() if shared is None else shared.spread(x) for x in rows)
    out = varlen_attn(
        queries,
        keys,
        values,
        borders,
        borders,
        longest,
        longest,
        scale=scaling,
        window_size=(left, 0) if causal else (left, left),
        **grouped,
    )
    assert isinstance(out, torch.Tensor)
    return (out if shared is None else shared.take(out)).unsqueeze(0)


def _equal_segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, length: int, scaling: float | None, causal: bool
) -> torch.Tensor:
    """Segments of one length are a batch without padding, for which torch has faster kernels. No segment is longer than the
    longest, so that they are equal where their number times the longest is all there is: no border is asked for.
    """
    queries, keys, values = (
        as_rows(tensor).unflatten(0, (-1, length)).transpose(1, 2) for tensor in (query, key, value)
    )
    with cudnn_first() if prefers_cudnn(query, length) else nullcontext():
        out = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=causal, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
    return out.transpose(1, 2).flatten(0, 1).unsqueeze(0)
