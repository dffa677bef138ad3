"""Bodies of the OpenAI chat and completions API: what is used, what is ignored, and what is refused, each by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.data.columns import nearest_name
from finetune.inference.serving.asked_rows import count_characters, count_parts
from finetune.inference.serving.faults import RequestFault, malformed
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.messages import ModelFacts, Sampling

MOST_STOPS = 16
MOST_PROMPTS = 64
USED = (
    *("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k"),
    *("seed", "stop", "n", "logprobs"),
)
# Without an effect on the text: the answer names them in the header X-Ignored-Parameters.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
# Refused, unless they have the value with which they do nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "modalities": (None, ["text"]),
    "top_logprobs": (None, 0),
    "reasoning_effort": (None,),
    "echo": (None, False),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
}


@dataclass(frozen=True)
class AskedTexts:
    """samplings: one for each prompt. stream: send the text as it is written. include_usage: with a last event of it.

    ignored: parameters that have no effect.
    """

    samplings: tuple[Sampling, ...]
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]


def read_chat(body: Any, facts: ModelFacts, limits: Limits) -> AskedTexts:
    """A body of /v1/chat/completions. Raises: RequestFault (400, 404 or 413)."""
    given = _object(body)
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise malformed("messages is missing, or not a list of messages", param="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise malformed(f"message {place} has no role", param=f"messages[{place}]")
    if messages[-1]["role"] == "assistant":
        raise malformed("the last message is the assistant's: there is nothing to reply to", param="messages")
    prompt: dict[str, Any] = {"messages": messages}
    logprobs = _value(given, "logprobs", False, bool, "true or false")
    return _asked(given, [prompt], ("messages",), facts, limits, logprobs=logprobs)


def read_completion(body: Any, facts: ModelFacts, limits: Limits) -> AskedTexts:
    """A body of /v1/completions: one prompt or a list of them. Raises: RequestFault (400, 404 or 413)."""
    given = _object(body)
    prompts = given.get("prompt")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise malformed("prompt is missing, or neither text nor a list of texts", param="prompt")
    if len(prompts) > MOST_PROMPTS:
        raise RequestFault(413, "too_many_rows", f"{len(prompts):,} prompts, more than {MOST_PROMPTS}", param="prompt")
    logprobs = given.get("logprobs")
    if logprobs not in (None, False, True, 0, 1):
        raise malformed("logprobs is not 1: log-probabilities are given of the tokens written alone", param="logprobs")
    return _asked(
        given, [{"prompt": prompt} for prompt in prompts], ("prompt",), facts, limits, logprobs=bool(logprobs)
    )


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise malformed("the body is not an object")
    return body


def _asked(
    given: Mapping[str, Any],
    prompts: list[dict[str, Any]],
    own: tuple[str, ...],
    facts: ModelFacts,
    limits: Limits,
    *,
    logprobs: bool,
) -> AskedTexts:
    _check_names(given, own)
    model = given.get("model", facts.name)
    if model != facts.name:
        raise RequestFault(
            404,
            "model_not_found",
            f"the model {str(model)[:100]!r} is not served here; {facts.name!r} is",
            param="model",
        )
    for prompt in prompts:
        count = count_characters(prompt)
        if count > limits.characters:
            raise malformed(
                f"the prompt has {count:,} characters, more than the server's limit of {limits.characters:,}",
                param=own[0],
                kind="too_long",
            )
        if count_parts(prompt) > limits.values:
            raise malformed(f"the prompt has more than {limits.values:,} values", param=own[0], kind="too_long")
    if given.get("n") is not None and (given["n"] is True or given["n"] != 1):
        raise malformed(
            "n is not 1: send the request several times, with another seed each", param="n", kind="unsupported"
        )
    stream = _value(given, "stream", False, bool, "true or false")
    if stream and logprobs:
        raise malformed("logprobs are not streamed: leave out stream", param="logprobs", kind="unsupported")
    if stream and len(prompts) > 1:
        raise malformed("several prompts are not streamed: send one prompt each", param="prompt", kind="unsupported")
    settings = _settings(given)
    samplings = tuple(Sampling(prompt, logprobs=logprobs, **settings) for prompt in prompts)
    usage = _value(given, "stream_options", {}, dict, "an object").get("include_usage", False)
    ignored = tuple(name for name in IGNORED if given.get(name) is not None)
    return AskedTexts(samplings, stream, bool(usage), ignored)


def _check_names(given: Mapping[str, Any], own: tuple[str, ...]) -> None:
    known = (*USED, *own, *IGNORED)
    for name, value in given.items():
        if name in known or (name in NEUTRAL and any(value == neutral for neutral in NEUTRAL[name])):
            continue
        if name in NEUTRAL:
            raise malformed(f"{name} is not supported by this server; leave it out", param=name, kind="unsupported")
        near = nearest_name(name, known)
        hint = f"; did you mean {near}?" if near else ""
        raise malformed(f"unknown parameter {name[:100]!r}{hint}", param=name[:100], kind="unknown_parameter")


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    limits = {name: given[name] for name in ("max_tokens", "max_completion_tokens") if given.get(name) is not None}
    if len(set(map(str, limits.values()))) > 1:
        raise malformed("max_tokens and max_completion_tokens contradict each other", param="max_tokens")
    name = next(iter(limits), "max_tokens")
    return {
        "max_tokens": _whole(given, name, lambda value: value >= 1, "a whole number of at least 1"),
        "temperature": _real(given, "temperature", lambda value: 0 <= value <= 2, "a number from 0 to 2"),
        "top_p": _real(given, "top_p", lambda value: 0 < value <= 1, "a number above 0, and at most 1"),
        "top_k": _whole(given, "top_k", lambda value: 0 <= value < 1 << 31, "a whole number of at least 0"),
        "seed": _whole(given, "seed", lambda value: 0 <= value < 1 << 63, "a whole number from 0 to 2^63 - 1"),
        "stop": _stops(given.get("stop")),
    }


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise malformed("stop is neither text nor a list of texts, none of them empty", param="stop")
    if len(stops) > MOST_STOPS or any(len(stop) > 1000 for stop in stops):
        raise malformed(f"stop has more than {MOST_STOPS} texts, or one with more than 1,000 characters", param="stop")
    return tuple(stops)


def _value(given: Mapping[str, Any], name: str, default: Any, kind: type, allowed: str) -> Any:
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise malformed(f"{name} is not {allowed}", param=name)
    return value


def _whole(given: Mapping[str, Any], name: str, check: Callable[[int], bool], allowed: str) -> int | None:
    value = given.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not check(value)):
        raise malformed(f"{name} is not {allowed}", param=name)
    return value


def _real(given: Mapping[str, Any], name: str, check: Callable[[float], bool], allowed: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not check(value):
        raise malformed(f"{name} is not {allowed}", param=name)
    return float(value)
