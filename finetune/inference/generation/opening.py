"""Opens the text generator of a model: continuous batching where it is right, `generate` where it is not, and says why.

Right is what is measured: a few tokens are written by continuous batching, and their log-probabilities compared with those
of the model's ordinary forward pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from finetune.errors import TrainingFailed, UserError
from finetune.inference.answering import RowError
from finetune.inference.generation.cache_size import PAGE, choose_cache_size
from finetune.inference.generation.continuous import ContinuousGenerator
from finetune.inference.generation.generator import TextGenerator
from finetune.inference.generation.obstacles import continuous_obstacle
from finetune.inference.generation.prompts import PromptRules
from finetune.inference.generation.requests import GenerationSettings
from finetune.inference.generation.static import StaticGenerator
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.causal_lm.model import stop_tokens

TOLERANCES = {torch.float32: 1e-2, torch.float16: 0.25, torch.bfloat16: 0.5}  # of a log-probability
_FLASH_PAGE = 256  # what its kernels take
_CHECK_SECONDS = 300.0


def open_generator(
    artifacts: TaskArtifacts,
    module: nn.Module,
    *,
    beams: int = 1,
    longest: int = 0,
    autocast: torch.dtype | None = None,
    memory: int | None = None,
    slots: int = 0,
    notify: Callable[[str], None] = lambda line: None,
) -> TextGenerator:
    """The generator of a model that writes text, as `Task.build` makes it (causal_lm, preference, seq2seq).

    module: in evaluation mode on its device. An adapter stays unmerged. longest: tokens of the longest prompt with its
    reply; 0: the model's length. memory: bytes for the cache; None: a share of what is free. slots: requests at
    the same time; 0: by the device. notify: called with a sentence on which way is
    used, and why.
    """
    model: Any = module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
    rules = prompt_rules(artifacts, model)
    why = continuous_obstacle(model, beams)
    if not why:
        generator, why = _open_continuous(model, rules, longest, autocast, memory, slots)
        if generator is not None:
            notify(
                f"generation: continuous batching, up to {generator.slots} at a time, "
                f"in a cache of {generator.size.tokens:,} tokens"
            )
            return generator
    notify(f"generation: generate on batches sorted by length, not continuous batching: {why}")
    encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    return StaticGenerator(model, rules, why, encoder_decoder=encoder_decoder, autocast=autocast, slots=slots)


def prompt_rules(artifacts: TaskArtifacts, model: Any) -> PromptRules:
    """What the model takes, from its configuration and its tokenizer."""
    tokenizer = copy.deepcopy(artifacts.processor)  # tokenizers do not like it if two threads use one
    text = model.config.get_text_config()
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    positions = getattr(text, "max_position_embeddings", None)
    positions = positions if isinstance(positions, int) and positions > 0 else 0
    if getattr(model.config, "is_encoder_decoder", False):
        stops = frozenset() if tokenizer.eos_token_id is None else frozenset([tokenizer.eos_token_id])
        reply = max(0, positions - 1)
        return PromptRules(tokenizer, vocabulary, stops, most_prompt=positions, most_reply=reply)
    return PromptRules(tokenizer, vocabulary, frozenset(stop_tokens(tokenizer)), most=positions)


def default_penalty(module: nn.Module) -> float:
    """The repetition penalty that the model's own generation_config.json asks for, 1.0 for none. `generate` applies it, and
    so did every reply in training. Raises: UserError for what is no penalty.
    """
    penalty = getattr(getattr(module, "generation_config", None), "repetition_penalty", None)
    if penalty is None:
        return 1.0
    if not isinstance(penalty, (int, float)) or not 0 < penalty < math.inf:
        raise UserError(
            f"repetition_penalty is {str(penalty)[:100]!r}",
            where="generation_config.json of the model",
            remedy="It must be a positive number: correct it, or remove it.",
        )
    return float(penalty)


def _open_continuous(
    model: Any, rules: PromptRules, longest: int, autocast: torch.dtype | None, memory: int | None, slots: int
) -> tuple[ContinuousGenerator | None, str]:
    longest = min(longest, rules.most) if longest and rules.most else longest or rules.most or 4096
    page = _FLASH_PAGE if "flash" in str(model.config._attn_implementation) else PAGE
    try:
        size = choose_cache_size(
            model.config.get_text_config(), model.dtype, model.device, longest, memory=memory, page=page, slots=slots
        )
        if size.tokens < (rules.most or size.tokens + 1):
            limited_by = (
                "the length that its cache has memory for" if size.tokens < longest else "the length it is opened for"
            )
            rules = PromptRules(
                rules.tokenizer, rules.vocabulary, rules.stop_tokens, most=size.tokens, limited_by=limited_by
            )
        generator = ContinuousGenerator(model, rules, size, autocast)
    except (AttributeError, ValueError, RuntimeError, MemoryError) as error:
        return None, f"it does not start ({error})"
    try:
        fault = _check_tokens(generator, model, autocast)
    except TrainingFailed as error:
        fault = error.what
    except BaseException:
        generator.close()
        raise
    if fault:
        generator.close()
        return None, fault
    return generator, ""


def _check_tokens(generator: ContinuousGenerator, model: Any, autocast: torch.dtype | None) -> str:
    """What is wrong with a few tokens of continuous batching; "" if nothing."""
    prompts = [[(7 * place + 3 * length) % generator.rules.vocabulary for place in range(length)] for length in (2, 5)]
    new_tokens = max(1, min(3, generator.rules.most - 5)) if generator.rules.most else 3
    settings = GenerationSettings(new_tokens=new_tokens, logprobs=True)
    requests = [generator.submit(prompt, settings) for prompt in prompts]
    tolerance = TOLERANCES.get(autocast or model.dtype, TOLERANCES[torch.bfloat16])
    for request in requests:
        outcome = request.wait(_CHECK_SECONDS)
        if isinstance(outcome, RowError):
            return f"it fails ({outcome.message})"
        with generator.exclusively():
            expected = token_logprobs(model, request.prompt, outcome.tokens)
        worst = max(abs(one - other) for one, other in zip(outcome.logprobs, expected, strict=True))
        if not math.isfinite(worst) or worst > tolerance:
            return f"its log-probabilities differ by {worst:.2g} from those of a forward pass"
    return ""


@torch.no_grad()
def token_logprobs(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """The log-probability of each of `tokens` after `prompt`, by one forward pass of the whole."""
    ids = torch.tensor([[*prompt, *tokens]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    chosen = torch.tensor(list(tokens), device=logits.device).unsqueeze(1)
    return [float(value) for value in logits.log_softmax(dim=-1).gather(1, chosen).squeeze(1)]
