"""Models on batches without padding: which of them can, and classifiers that read the state of one token of each example.

transformers' classifiers read the first token of a row, or the last one that is not padding. A batch without padding is one
row, so the head is given the states of those tokens alone, as a batch of as many rows with one token each: what it does
with them is the model's own code. The body reads the row of all tokens.

Shapes: S examples, T tokens of all of them, H hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import UserError
from finetune.models.logit_probe import answering
from finetune.models.segmented import packing_obstacle, use_segmented_attention

FIRST_TOKEN = (
    "albert",
    "bert",
    "camembert",
    "data2vec-text",
    "distilbert",
    "electra",
    "ernie",
    "modernbert",
    "roberta",
    "xlm-roberta",
)
"""Kinds of models whose classifiers read the first token of a text."""
LAST_TOKEN = ("gpt2",)
"""Those that read the last one, beside all that transformers builds on GenericForSequenceClassification (Llama, Qwen ...)."""
_BORDERS = "cu_seq_lens_q"
_ROW = ("input_ids", "position_ids", "token_type_ids", "cu_seq_lens_k", "max_length_q", "max_length_k", _BORDERS)


def padding_free_obstacle(model_class: Any, config: Any, attention: str = "") -> UserError | None:
    """Why a model cannot take examples that are concatenated without padding; None where it can. No model is built.

    Arguments as for `packing_obstacle`.
    """
    obstacle = packing_obstacle(model_class, config, attention)
    name = getattr(model_class, "__name__", "")
    if obstacle is None and not name.endswith("ForCausalLM"):
        kind = getattr(config, "model_type", name)
        if not _is_of_transformers(model_class) or not _pooled_token(model_class, config):
            return UserError(
                f"it is not known which token the classifier of a {kind} model reads",
                where="data.packing",
                remedy="Set data.packing: none (padded batches, balanced by length).",
            )
    return obstacle


def _is_of_transformers(model_class: Any) -> bool:
    """Whether what a class does is known here: code that came with a model may read any token, whatever it derives from."""
    return str(getattr(model_class, "__module__", "")).partition(".")[0] == "transformers"


def _pooled_token(model_class: Any, config: Any) -> str:
    """Which token a classifier reads: "first", "last", or "" where it is not known. Taggers are of the same families."""
    from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

    kind = getattr(config, "model_type", "")
    if kind in FIRST_TOKEN:
        averages = getattr(config, "classifier_pooling", "cls") != "cls" and _reads_one_token(model_class)
        relative = getattr(config, "position_embedding_type", "absolute") not in ("absolute", None)
        return "" if averages or relative or getattr(config, "is_decoder", False) else "first"
    generic = isinstance(model_class, type) and issubclass(
        model_class, (GenericForSequenceClassification, GenericForTokenClassification)
    )
    causal = getattr(config, "is_causal", True) and not getattr(config, "use_bidirectional_attention", False)
    return "last" if (generic or kind in LAST_TOKEN) and causal else ""


def _reads_one_token(model_class: Any) -> bool:
    return model_class.__name__.endswith("ForSequenceClassification")


def make_padding_free(model: Any) -> None:
    """Let a classifier of texts, or of tokens, take batches without padding; padded ones are taken as before.

    `model(...)` is then given what `concatenate_rows` makes: logits of a classifier of texts are [S, classes], of a tagger
    [1, T, classes]. Raises: UserError if the model cannot.
    """
    if (obstacle := padding_free_obstacle(type(model), model.config)) is not None:
        raise obstacle
    use_segmented_attention(model)
    pooled = _pooled_token(type(model), model.config) if _reads_one_token(type(model)) else ""
    forward = model.forward

    @functools.wraps(forward)
    def forward_padding_free(*arguments: Any, **inputs: Any) -> Any:
        if inputs.get(_BORDERS) is None:
            return forward(*arguments, **inputs)
        body = getattr(model, model.base_model_prefix)
        inputs["position_ids"] = _own_positions(body, inputs)
        if not pooled:
            return forward(*arguments, **inputs)
        row = {name: inputs.pop(name) for name in _ROW if name in inputs}
        return _run_head(forward, body, row, inputs, _pooled_places(model, row, pooled))

    model.forward = forward_padding_free


def _run_head(
    forward: Callable[..., Any], body: nn.Module, row: dict[str, Any], options: dict[str, Any], places: Tensor
) -> Any:
    """The model's own forward pass over rows of one token, for which the body reads `row`. places: of these tokens, [S]."""
    ends = getattr(body, "encoder", None) or getattr(body, "transformer", None)  # a pooler follows it
    run_body = body.forward

    def answer(*_: Any, **named: Any) -> Any:
        named = {name: value for name, value in named.items() if name not in ("input_ids", *_ROW)}
        if "use_cache" in named:
            named["use_cache"] = False
        return run_body(**named, **row)

    with ExitStack() as stack:
        if ends is None:
            stack.enter_context(answering(body, lambda *_, **named: _pick(answer(**named), places)))
        else:
            run_ends = ends.forward
            stack.enter_context(answering(body, answer))
            stack.enter_context(answering(ends, lambda *given, **named: _pick(run_ends(*given, **named), places)))
        tokens = row["input_ids"][0].index_select(0, places).unsqueeze(1)
        return forward(input_ids=tokens, **options)


def _pick(outputs: Any, places: Tensor) -> Any:
    """Outputs with the states [1, T, H] of the tokens at `places` alone, as rows of one token: [S, 1, H]."""
    if isinstance(outputs, tuple):
        return _pick(outputs[0], places), *outputs[1:]
    if isinstance(outputs, Tensor):
        return outputs[0].index_select(0, places).unsqueeze(1)
    outputs["last_hidden_state"] = _pick(outputs.last_hidden_state, places)
    return outputs


def _pooled_places(model: Any, row: dict[str, Any], pooled: str) -> Tensor:
    """Where the token of each example stands that the head reads: int64 [S]. Nothing is asked of the device."""
    borders = row[_BORDERS].long()
    if pooled == "first":
        return borders[:-1]
    pad = model.config.get_text_config().pad_token_id
    if pad is None:
        return borders[1:] - 1
    ids = row["input_ids"][0]  # a text may end with the padding token, which is passed over as in padded rows
    places = torch.arange(len(ids), device=ids.device)
    segments = torch.bucketize(places, borders[1:], right=True)
    return borders[:-1].scatter_reduce(0, segments, torch.where(ids != pad, places, 0), "amax")


def _own_positions(body: Any, inputs: dict[str, Any]) -> Tensor:
    """The positions of `inputs`, [1, T], as the model counts them: RoBERTa and its kind begin behind the padding token's, and
    do not count that token where a text holds it.
    """
    positions: Tensor = inputs["position_ids"]
    embeddings: Any = getattr(body, "embeddings", None)
    if not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return positions
    padding: int = embeddings.padding_idx
    counts = (inputs["input_ids"] != padding).long()
    total = counts.cumsum(1)
    starts = torch.arange(positions.shape[1], device=positions.device) - positions
    before = (total - counts).gather(1, starts)
    return (total - before) * counts + padding
