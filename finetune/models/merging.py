"""Merges an adapter into the weights of its model, and compares the outputs of two models on the same rows.

Weights that several modules share (tied embeddings) are separated where the adapter changes one of them: peft merges into
the shared weight, which changes the other modules too.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.models.head import embedding_modules
from finetune.models.inputs import Known, kind_of_model
from finetune.units import format_number

# Largest difference of an output, as a share of the largest output, by the data type of the weights. Wrong merges give
# differences of the outputs' own size; the rounding of merged half-precision weights adds up over the layers.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


def merge(model: Any) -> Any:
    """The bare model with the adapter of the peft model `model` merged into its weights, in place.

    Its configuration says tie_word_embeddings: false if the adapter made input and output embeddings differ.
    The model must be whole: not sharded, not quantized. Single process.
    """
    configs = _tying_configs(model.get_base_model().config)
    _separate_shared_weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of tied weights, which are separate now
        merged = model.merge_and_unload()
    for config in configs:  # peft says no here even for models that compute differently then (T5)
        config.tie_word_embeddings = True
    _settle_ties(merged)
    return merged


def _tying_configs(config: Any) -> list[Any]:
    """The configuration, and the one of its text model, where they tie the word embeddings."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = [config] if text is config else [config, text]
    return [one for one in found if getattr(one, "tie_word_embeddings", False)]


def _separate_shared_weights(model: Any) -> None:
    """Give each layer with a low-rank update weights of its own."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    low_rank = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    layer: Any
    for layer in low_rank:
        if isinstance(layer, TrainableTokensLayer):
            continue
        base = layer.base_layer
        if any(uses[id(weight)] > 1 for weight in base.parameters(recurse=False)):
            layer.base_layer = copy.deepcopy(base)


def _settle_ties(merged: Any) -> None:
    """Tie again what is still equal, and keep the rest apart when the model is saved and loaded."""
    pairs = merged.get_expanded_tied_weights_keys(all_submodels=True)
    weights = dict(merged.named_parameters(remove_duplicate=False))
    pairs = {target: source for target, source in pairs.items() if target in weights and source in weights}
    differing = [target for target, source in pairs.items() if not _tie_if_equal(merged, target, source)]
    if not differing:
        return
    embeddings = {id(module.weight) for module in embedding_modules(merged)}
    names = {name for name, weight in weights.items() if id(weight) in embeddings}
    if any(target in names or pairs[target] in names for target in differing) and _untie(merged.config):
        differing = list(pairs)  # the configuration ties all of them or none
    seen = {id(merged.get_parameter(source)) for source in pairs.values()}
    for target in differing:
        weight = merged.get_parameter(target)
        if id(weight) in seen:  # or only one of them would be saved
            _set_weight(merged, target, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))
        seen.add(id(weight))
        getattr(merged, "all_tied_weights_keys", {}).pop(target, None)


def _tie_if_equal(model: Any, target: str, source: str) -> bool:
    ours, theirs = model.get_parameter(target), model.get_parameter(source)
    if ours is not theirs and (ours.shape != theirs.shape or not torch.equal(ours, theirs)):
        return False
    _set_weight(model, target, theirs)
    return True


def _set_weight(model: nn.Module, name: str, weight: nn.Parameter) -> None:
    module, _, last = name.rpartition(".")
    setattr(model.get_submodule(module), last, weight)


def _untie(config: Any) -> bool:
    """Whether `config` says now that embeddings are not tied. It stays as it was if saying so would change the model's
    computation when it is loaded (T5 takes it as a factor of the output), or is not kept.
    """
    changed = copy.deepcopy(config)
    for one in _tying_configs(changed):
        one.tie_word_embeddings = False
    loaded = type(config).from_dict(changed.to_dict())
    if _without_ties(loaded.to_dict()) != _without_ties(config.to_dict()) or _tying_configs(loaded):
        return False
    for one in _tying_configs(config):
        one.tie_word_embeddings = False
    return True


def _without_ties(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_ties(value) for key, value in values.items() if key != "tie_word_embeddings"}
    return values


@dataclass(frozen=True)
class Comparison:
    """rows: how many were compared. difference: the largest of any output. scale: the largest output. tolerance: of
    difference / scale.
    """

    rows: int
    difference: float
    scale: float
    tolerance: float

    @property
    def equal(self) -> bool:
        """False also where an output is not finite."""
        return self.difference <= self.tolerance * max(self.scale, 1e-6)

    def __str__(self) -> str:
        return (
            f"{format_number(self.rows, 'row')}, largest difference {self.difference:.2g} "
            f"(outputs up to {self.scale:.3g}, tolerance {self.tolerance:g} of that)"
        )


def random_inputs(model: Any, known: Known | None = None) -> dict[str, torch.Tensor]:
    """Inputs of `model` on its device, always the same for the same model. known: of the run that it comes from, if any.

    Raises: ValueError for a model whose inputs are of no kind in models/inputs/.
    """
    inputs = kind_of_model(model).random(model, known or Known(), torch.Generator().manual_seed(0))
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}


def outputs_of(model: Any, inputs: dict[str, Any], names: Sequence[str] = ("logits",)) -> list[torch.Tensor]:
    """The outputs under `names`, [rows, ...] each, as float32 on the CPU; in evaluation mode. names: see ModelSpec.outputs."""
    training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model(**inputs)
    model.train(training)
    assert names and set(names) <= set(outputs), (
        f"outputs of the model: {', '.join(outputs)}; to be compared: {', '.join(names)}"
    )
    return [outputs[name].detach().float().cpu() for name in names]


def compare(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], dtype: torch.dtype) -> Comparison:
    """Two lists of outputs of the same rows, each pair of one shape [rows, ...]. dtype: of the weights."""
    assert expected and len(expected) == len(found), "models have outputs"
    differences = [float((ours - theirs).abs().max()) for ours, theirs in zip(expected, found, strict=True)]
    scale = max(float(ours.abs().max()) for ours in expected)
    return Comparison(len(expected[0]), max(differences), scale, TOLERANCES.get(dtype, 0.1))


def check_equal(comparison: Comparison, where: str) -> None:
    """Raises: UserError if the merged model does not give the adapter's outputs."""
    if not comparison.equal:
        raise UserError(
            f"the merged model does not give the outputs of the adapter: {comparison}",
            where=where,
            remedy="Nothing was written. Export the adapter without --merge, and report the architecture and "
            "adapter.targets.",
        )
