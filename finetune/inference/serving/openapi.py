"""The endpoints of a model as an OpenAPI 3.1 document, with examples to copy ("x-examples"), which /docs shows."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import quote

import finetune
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.messages import ModelFacts
from finetune.inference.serving.openai_api import MODELS
from finetune.recipe.roles import example_row

ERROR = {
    "type": "object",
    "properties": {
        "error": {"type": "object", "properties": {key: {} for key in ("message", "type", "param", "code")}}
    },
}


def describe_api(facts: ModelFacts, limits: Limits, address: str) -> dict[str, Any]:
    """address: of the server, such as http://127.0.0.1:8000."""
    paths: dict[str, Any] = {}
    if facts.chats:
        paths["/v1/chat/completions"] = {"post": _chat(facts, address)}
    if facts.writes:
        paths["/v1/completions"] = {"post": _complete(facts, address)}
    paths["/predict"] = {"post": _predict(facts, limits, address)}
    paths["/v1/models"] = {"get": _get("The model, as OpenAI's clients list it", address, "/v1/models")}
    named = f"{MODELS}{quote(facts.name)}"
    paths[f"{MODELS}{{model}}"] = {
        "get": {
            **_get("The model by its name", address, named),
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
        }
    }
    paths["/model"] = {"get": _get("What the model takes and answers", address, "/model")}
    paths["/health"] = {"get": _get("200 while requests are taken, 503 while loading or draining", address, "/health")}
    paths["/metrics"] = {"get": _get("Counters in Prometheus' text format", address, "/metrics")}
    return {
        "openapi": "3.1.0",
        "info": {"title": facts.name, "description": facts.title or facts.task, "version": finetune.__version__},
        "servers": [{"url": address}],
        "paths": paths,
    }


def _predict(facts: ModelFacts, limits: Limits, address: str) -> dict[str, Any]:
    columns = {facts.columns.get(role, role): {"description": about} for role, about in facts.roles.items()}
    row = {"type": "object", "properties": columns}
    options = {
        "top_k": {"type": "integer", "minimum": 1, "description": "Classes listed with their scores."},
        "threshold": {"type": "number", "minimum": 0, "maximum": 1, "description": "Lowest score of what is listed."},
    }
    taken = {name: options[name] for name in facts.options}
    body = {"type": "object", "properties": {"rows": {"type": "array", "items": row, "maxItems": limits.rows}, **taken}}
    content: dict[str, Any] = {"application/json": {"schema": body}, "application/jsonl": {"schema": row}}
    if facts.image:
        content["image/*"] = {"schema": {"type": "string", "format": "binary"}}
        content["multipart/form-data"] = {
            "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
        }
    also = " An image is base64 or a data URI in JSON, a file of a form, or the body itself." if facts.image else ""
    named = f" Options: {', '.join(facts.options)}, beside rows or in the query." if facts.options else ""
    return {
        "summary": "A record for each row, as finetune predict writes it",
        "description": f"At most {limits.rows:,} rows, as a list, as JSON lines, or one alone.{named}{also}",
        "requestBody": {"required": True, "content": content},
        "responses": _responses(),
        "x-examples": _predict_examples(facts, address),
    }


def _predict_examples(facts: ModelFacts, address: str) -> list[str]:
    query = f"?{facts.options[0]}={3 if facts.options[0] == 'top_k' else 0.5}" if facts.options else ""
    if facts.image:
        column = facts.columns.get(facts.image, facts.image)
        return [
            f"curl {address}/predict{query} \\\n  -H 'Content-Type: image/jpeg' --data-binary @photo.jpg",
            f"curl {address}/predict{query} -F file=@one.jpg -F file=@two.png",
            _curl(address, "/predict", {"rows": [{column: "data:image/png;base64,iVBORw0KGgo..."}]}),
        ]
    values = example_row(facts.roles) or dict.fromkeys(list(facts.roles)[:2], "...")
    row = {facts.columns.get(role, role): value for role, value in values.items()}
    return [
        _curl(address, "/predict", {"rows": [row], **({"top_k": 3} if "top_k" in facts.options else {})}),
        f"curl {address}/predict{query} \\\n  -H 'Content-Type: application/jsonl' --data-binary @rows.jsonl",
    ]


def _chat(facts: ModelFacts, address: str) -> dict[str, Any]:
    body = {"model": facts.name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
    return {
        "summary": "A reply to a conversation, as OpenAI's API gives it",
        "description": WRITING,
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": _responses(),
        "x-examples": [
            _curl(address, "/v1/chat/completions", body),
            _curl(address, "/v1/chat/completions", {**body, "stream": True}, "-N "),
        ],
    }


def _complete(facts: ModelFacts, address: str) -> dict[str, Any]:
    body = {"model": facts.name, "prompt": "Once upon a time", "max_tokens": 64, "stop": ["\n"]}
    return {
        "summary": "What follows a prompt, as OpenAI's API gives it",
        "description": WRITING,
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": _responses(),
        "x-examples": [_curl(address, "/v1/completions", body)],
    }


WRITING = (
    "Used: max_tokens, temperature (default 0: the likeliest token), top_p, top_k, seed, stop, stream, stream_options and "
    "logprobs. A parameter that would change the text and is not supported is refused by its name; one that would not is "
    "named in the header X-Ignored-Parameters. A client that disconnects ends its text."
)


def _get(summary: str, address: str, path: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "description": "",
        "responses": {"200": {"description": "OK"}},
        "x-examples": [f"curl {address}{path}"],
    }


def _responses() -> dict[str, Any]:
    fault = {"description": "Why there is no answer.", "content": {"application/json": {"schema": ERROR}}}
    return {"200": {"description": "OK"}, **dict.fromkeys(("400", "401", "413", "415", "429", "503"), fault)}


def _curl(address: str, path: str, body: Any, flags: str = "") -> str:
    sent = shlex.quote(json.dumps(body))
    return f"curl {flags}{address}{path} \\\n  -H 'Content-Type: application/json' \\\n  -d {sent}"
