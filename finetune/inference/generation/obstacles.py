"""Why a model or a setting cannot use continuous batching, known before the first request.

The manager drops what it does not support without a word, or answers every request with an error, so it is not asked.
"""

from __future__ import annotations

from typing import Any

LAYERS = ("full_attention", "sliding_attention")
# Settings of a model's generation_config.json that change logits, with the values that change nothing.
PROCESSED: dict[str, tuple[object, ...]] = {
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "bad_words_ids": (None,),
    "sequence_bias": (None, {}),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
}


def continuous_obstacle(model: Any, beams: int) -> str:
    """One clause, "" where there is none. model: without an adapter's wrapper."""
    config = model.config
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model"
    if beams > 1:
        return "a beam search keeps several texts of a request"
    if not hasattr(model, "init_continuous_batching"):
        return "its class does not support it"
    if _is_split(model):
        return "the model is split over several devices"
    kinds = {kind for kind in getattr(text, "layer_types", None) or () if kind not in LAYERS}
    if kinds:
        return f"it has layers of the kind {', '.join(sorted(map(str, kinds)))}"
    if not getattr(model, "_supports_attention_backend", False):
        return f"the attention of a {getattr(config, 'model_type', type(model).__name__)} model takes no paged cache"
    generation = getattr(model, "generation_config", None)
    processed = [name for name, neutral in PROCESSED.items() if getattr(generation, name, None) not in neutral]
    if processed:
        return f"the model's generation_config.json sets {', '.join(processed)}"
    return ""


def _is_split(model: Any) -> bool:
    placed = getattr(model, "hf_device_map", None) or {}
    parameters = list(model.parameters())
    devices = {parameter.device for parameter in parameters}
    return (
        len({str(device) for device in placed.values()}) > 1
        or len(devices) > 1
        or any(hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id") for parameter in parameters)
        or int(getattr(model, "_tp_size", None) or 1) > 1
    )
