"""The HTTP application: which endpoint a model has, and what each answers."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from finetune.data.columns import nearest_name
from finetune.inference.serving.asked_rows import AskedRows, parse_rows
from finetune.inference.serving.backend import Backend
from finetune.inference.serving.faults import RequestFault
from finetune.inference.serving.guard import Gate, Guard
from finetune.inference.serving.intake import VALUE_BYTES, Admission, Bodies, read_body, while_connected
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.messages import BatchRun, Record
from finetune.inference.serving.metrics import Metrics
from finetune.inference.serving.openai_api import MODELS, OpenAIEndpoints
from finetune.inference.serving.pages import Pages
from finetune.inference.serving.responses import json_response
from finetune.recipe.secrets import mask
from finetune.terminal import say

Endpoint = Callable[[Request], Awaitable[Response]]
Routes = Mapping[str, Mapping[str, Endpoint]]
"""Path -> method -> endpoint."""

OPEN_PATHS = ("/health", "/")  # the page at / knows nothing of the model until it has the key


@dataclass
class Service:
    """The endpoints. gate.draining: new requests are refused, /health says so."""

    backend: Backend
    limits: Limits
    gate: Gate
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.rows = Admission("rows", self.limits.waiting)
        self.texts = Admission("texts", self.limits.writing)
        self.bodies = Bodies(self.limits.bodies_bytes)
        metrics = self.metrics
        metrics.gauge("finetune_waiting_rows", "Rows that are accepted and not yet answered.", lambda: self.rows.count)
        metrics.gauge(
            "finetune_writing_texts", "Texts that are being written or wait for it.", lambda: self.texts.count
        )
        metrics.gauge(
            "finetune_replicas",
            "Copies of the model by state.",
            lambda: {(("state", name),): count for name, count in self._replica_states().items()},
        )

    def _replica_states(self) -> dict[str, int]:
        ready, count = self.backend.replicas
        return {"ready": ready, "starting": count - ready}

    def count_batch(self, run: BatchRun) -> None:
        """A replica has answered a chunk."""
        self.metrics.batch_rows.add(run.rows)
        self.metrics.batch_seconds.add(run.seconds)

    async def health(self, request: Request) -> Response:
        """200 while requests are taken; 503 while the model is loaded, and while the server drains."""
        ready, count = self.backend.replicas
        status = "draining" if self.gate.draining else "ready" if ready else "loading"
        body = {"status": status, "replicas": {"ready": ready, "all": count}}
        return json_response(body, status=200 if status == "ready" else 503)

    async def metrics_text(self, request: Request) -> Response:
        """Prometheus' text format."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def model(self, request: Request) -> Response:
        """What the page at / and clients need to know of the model."""
        facts, limits = self.backend.facts, self.limits
        return json_response(
            {
                "name": facts.name,
                "task": facts.task,
                "title": facts.title,
                "columns": {facts.columns.get(role, role): about for role, about in facts.roles.items()},
                "image": facts.columns.get(facts.image, facts.image),
                "labels": list(facts.labels),
                "options": list(facts.options),
                "writes": facts.writes,
                "chats": facts.chats,
                "max_length": facts.max_length,
                "device": facts.device,
                "limits": {"body_bytes": limits.body_bytes, "rows": limits.rows, "pixels": limits.pixels},
            }
        )

    async def predict(self, request: Request) -> Response:
        """Records for rows; see asked_rows.py for the forms of the body."""
        facts = self.backend.facts
        with self.bodies.hold() as take:
            body = await read_body(request, self.limits, take)
            content_type = request.headers.get("content-type", "")
            asked = parse_rows(content_type, body, _query(request), facts, self.limits)
            del body
            take(asked.values * VALUE_BYTES)
            with self.rows.hold(max(1, len(asked.rows))):
                records = await while_connected(request, self._predict(asked), self.limits.answer_seconds)
        for record in records:
            if "error" in record:
                self.metrics.errors.add(kind=record["error"]["kind"])
        errors = sum("error" in record for record in records)
        self.metrics.rows.add(len(records) - errors)
        notices = _gather_notices(records)
        answer = {"model": facts.name, "predictions": records, "errors": errors}
        return json_response({**answer, "notices": notices} if notices else answer)

    async def _predict(self, asked: AskedRows) -> list[Record]:
        records = []
        if asked.rows:
            records = await self.backend.predict(asked.rows, top_k=asked.top_k, threshold=asked.threshold)
        return asked.merged(records)


def _gather_notices(records: Iterable[Record]) -> list[dict[str, Any]]:
    """[{"row": the first one, "rows": how many, "notice": text}] of what is taken out of the records."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for notice in record.pop("notices", ()):
            found.setdefault(notice, {"row": record["row"], "rows": 0, "notice": notice})["rows"] += 1
    return list(found.values())


def _query(request: Request) -> dict[str, str]:
    given = request.query_params.multi_items()
    if len({name for name, _ in given}) < len(given):
        raise RequestFault(400, "malformed", "an option is in the query twice")
    return dict(given)


def build_app(service: Service) -> Guard:
    """The ASGI application."""
    openai = OpenAIEndpoints(service.backend, service.limits, service.texts, service.bodies, service.metrics)
    pages = Pages(service.backend, service.limits, has_key=bool(service.gate.key))
    posts: dict[str, Endpoint] = {
        "/predict": service.predict,
        "/v1/chat/completions": openai.chat,
        "/v1/completions": openai.complete,
    }
    gets: dict[str, Endpoint] = {
        "/": pages.try_out,
        "/docs": pages.docs,
        "/openapi.json": pages.openapi,
        "/health": service.health,
        "/metrics": service.metrics_text,
        "/model": service.model,
        "/v1/models": openai.models,
        MODELS: openai.model,
    }
    routes: Routes = {
        **{path: {"POST": endpoint} for path, endpoint in posts.items()},
        **{path: {"GET": endpoint, "HEAD": endpoint} for path, endpoint in gets.items()},
    }
    service.gate.open_paths = OPEN_PATHS

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        response = await _endpoint(routes, scope["path"], scope["method"])(Request(scope, receive, send))
        await response(scope, receive, send)

    return Guard(dispatch, service.gate, service.metrics, routes, _report)


def _endpoint(routes: Routes, path: str, method: str) -> Endpoint:
    """Raises: RequestFault (404 or 405)."""
    methods = routes.get(MODELS if path.startswith(MODELS) else path)
    if methods is None:
        near = nearest_name(path, routes)
        hint = f"; did you mean {near}?" if near else "; /docs lists what there is"
        raise RequestFault(404, "no_endpoint", f"there is no {path[:100]}{hint}")
    if method not in methods:
        allowed = ", ".join(methods)
        raise RequestFault(405, "method", f"{path} takes {allowed}, not {method[:20]}", headers={"Allow": allowed})
    return methods[method]


def _report(error: BaseException) -> None:
    say("bug in a request: " + str(mask("".join(traceback.format_exception(error)))).rstrip())
