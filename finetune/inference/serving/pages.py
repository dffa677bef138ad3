"""The pages: / to try the model by hand, /docs, and the description that programs read. Nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache, lru_cache
from pathlib import Path

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from finetune.html_templates import open_templates
from finetune.inference.serving.backend import Backend
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.openapi import describe_api
from finetune.inference.serving.responses import json_response

FOLDER = Path(__file__).parent


class Pages:
    """has_key: requests need a key, which /docs mentions."""

    def __init__(self, backend: Backend, limits: Limits, *, has_key: bool) -> None:
        self._backend, self._limits, self._has_key = backend, limits, has_key

    async def try_out(self, request: Request) -> Response:
        """The same page for every model: it asks /model which one there is."""
        page = _try_page()
        return HTMLResponse(page, headers={"Content-Security-Policy": _policy(page)})

    async def docs(self, request: Request) -> Response:
        """The endpoints of this model, with examples."""
        facts = self._backend.facts
        api = describe_api(facts, self._limits, str(request.base_url).rstrip("/"))
        page = (
            _environment()
            .get_template("docs.html.j2")
            .render(facts=facts, limits=self._limits, api=api, has_key=self._has_key)
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": _policy(page)})

    async def openapi(self, request: Request) -> Response:
        """OpenAPI 3.1."""
        return json_response(describe_api(self._backend.facts, self._limits, str(request.base_url).rstrip("/")))


@cache
def _try_page() -> str:
    return (FOLDER / "page.html").read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    return open_templates(FOLDER)


@lru_cache(maxsize=8)  # /docs contains the Host header of the request, so clients make pages without end
def _policy(page: str) -> str:
    """A browser runs the page's own script and style, known by their digests, and talks to this server alone."""
    allowed = {}
    for tag in ("script", "style"):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks]
        allowed[tag] = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
