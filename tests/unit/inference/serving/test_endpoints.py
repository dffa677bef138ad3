"""Endpoints over a small backend: answers and faults, who may ask, how much, and what the pages may do."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from finetune.inference.serving.app import Service, build_app
from finetune.inference.serving.guard import LOCAL_NAMES, Gate, Guard, host_name, is_loopback
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.pages import _policy
from tests.unit.inference.serving.small_backend import FACTS, WRITING, SmallBackend

Use = Callable[[httpx.AsyncClient], Awaitable[Any]]
LIMITS = Limits(body_bytes=4096, rows=8, waiting=10, writing=2, body_seconds=0.2, answer_seconds=5)
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "one two three"}]}


class Small:
    """A service with its application."""

    def __init__(self, facts: Any = FACTS, gate: Gate | None = None, limits: Limits = LIMITS) -> None:
        self.backend = SmallBackend(facts)
        self.service = Service(self.backend, limits, gate or Gate("", LOCAL_NAMES))
        self.app: Guard = build_app(self.service)

    def run(self, use: Use, base: str = "http://127.0.0.1:8000") -> Any:
        async def main() -> Any:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await use(client)

        return asyncio.run(main())

    def get(self, path: str, base: str = "http://127.0.0.1:8000", **headers: str) -> httpx.Response:
        return self.run(lambda client: client.get(path, headers=headers), base)

    def post(self, path: str, body: Any, base: str = "http://127.0.0.1:8000", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        return self.run(lambda client: client.post(path, content=content, headers=headers), base)


def fault(answer: httpx.Response) -> tuple[int, str]:
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.status_code, answer.json()["error"]["code"]


def test_records_are_in_order_and_a_row_fails_alone() -> None:
    answer = Small().post("/predict", [{"text": "abc"}, {"text": "bad"}, {"text": "de"}]).json()
    assert [record.get("length") for record in answer["predictions"]] == [3, None, 2]
    assert [record["row"] for record in answer["predictions"]] == [0, 1, 2]
    assert answer["predictions"][1]["error"]["kind"] == "bad_row"
    assert (answer["errors"], answer["model"]) == (1, "small")


def test_equal_notices_are_told_once_with_the_number_of_rows() -> None:
    small = Small()

    async def predict(rows: list[Any], **options: Any) -> list[Any]:
        return [{"row": row, "notices": ["cut"] + ["odd"] * (row == 2)} for row in range(len(rows))]

    small.backend.predict = predict  # type: ignore[method-assign]
    answer = small.post("/predict", [{"text": "a"}] * 3).json()
    assert answer["notices"] == [{"row": 0, "rows": 3, "notice": "cut"}, {"row": 2, "rows": 1, "notice": "odd"}]
    assert answer["predictions"] == [{"row": 0}, {"row": 1}, {"row": 2}]


def test_a_bug_is_an_answer_without_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Small().post("/predict", [{"text": "bug"}])
    assert fault(answer) == (500, "bug")
    assert "secret" not in answer.text
    assert "secret of the server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("POST", "/health", 405),
        ("GET", "/nothing", 404),
        ("GET", "/predict/", 404),
        ("PUT", "/", 405),
    ],
)
def test_other_paths_and_methods(method: str, path: str, status: int) -> None:
    answer = Small().run(lambda client: client.request(method, path))
    assert fault(answer)[0] == status
    assert (status != 405) or "Allow" in answer.headers


def test_a_model_that_writes_no_text_says_where_to_ask() -> None:
    answer = Small().post("/v1/chat/completions", CHAT)
    assert fault(answer) == (404, "no_text")
    assert "/predict" in answer.text


def test_bodies_are_limited() -> None:
    small = Small()
    assert fault(small.post("/predict", b"[" + b" " * 5000 + b"]")) == (413, "body_too_large")

    async def parts() -> Any:
        for _ in range(50):
            yield b"x" * 100

    async def streamed(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/predict", content=parts(), headers={"Content-Type": "application/json"})

    assert fault(small.run(streamed)) == (413, "body_too_large")
    assert fault(small.post("/predict", [{}] * 9)) == (413, "too_many_rows")
    assert not small.backend.asked


def test_too_much_at_once_is_refused_with_when_to_come_again() -> None:
    small = Small()

    async def use(client: httpx.AsyncClient) -> tuple[httpx.Response, ...]:
        slow = [{"text": "sleep 0.2"}] * 2 + [{"text": "a"}] * 6
        first = asyncio.ensure_future(client.post("/predict", json=slow))
        while not small.backend.asked:
            await asyncio.sleep(0.005)
        refused = await client.post("/predict", json=[{"text": "b"}] * 3)
        taken = await client.post("/predict", json=[{"text": "b"}] * 2)
        return await first, refused, taken, await client.post("/predict", json=[{"text": "b"}] * 8)

    first, refused, taken, later = small.run(use)
    assert fault(refused) == (429, "busy")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert [answer.status_code for answer in (first, taken, later)] == [200] * 3
    assert small.service.rows.count == 0


def test_bodies_of_all_requests_together_are_limited() -> None:
    small = Small(limits=replace(LIMITS, bodies_bytes=3000, waiting=100))

    async def use(client: httpx.AsyncClient) -> tuple[httpx.Response, ...]:
        first = asyncio.ensure_future(client.post("/predict", json=[{"text": "sleep 0.2", "more": "a" * 2000}]))
        while not small.backend.asked:
            await asyncio.sleep(0.005)
        refused = await client.post("/predict", json=[{"text": "b", "more": "a" * 2000}])
        return await first, refused, await client.post("/predict", json=[{"text": "b", "more": "a" * 3500}])

    first, refused, later = small.run(use)
    assert fault(refused) == (429, "busy")
    assert [answer.status_code for answer in (first, later)] == [200, 200]
    assert small.service.bodies.count == 0


def test_a_request_that_takes_too_long_ends() -> None:
    small = Small(limits=replace(LIMITS, answer_seconds=0.05))
    assert fault(small.post("/predict", [{"text": "sleep 5"}])) == (504, "slow_answer")
    assert small.backend.cancelled == 1
    assert small.service.rows.count == 0


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "10.0.0.1:8000", "[::2]"]
)
def test_other_names_of_the_host_are_refused(host: str) -> None:
    small = Small()
    for path in ("/", "/health", "/model"):
        assert fault(small.get(path, Host=host)) == (403, "host")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST", "localhost."])
def test_own_names_of_the_host(host: str) -> None:
    assert Small().get("/health", Host=host).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9000", "http://localhost:8000"])
def test_pages_of_other_sites_may_not_ask(origin: str) -> None:
    small = Small()
    assert fault(small.post("/predict", [{"text": "a"}], Origin=origin)) == (403, "origin")
    assert not small.backend.asked


def test_own_page_may_ask() -> None:
    answer = Small().post("/predict", [{"text": "a"}], Origin="http://127.0.0.1:8000")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


KEY = "k" * 24


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer "},
    ],
)
def test_without_the_key_only_health_and_the_page_answer(headers: dict[str, str]) -> None:
    small = Small(gate=Gate(KEY))
    for path in ("/model", "/metrics", "/docs", "/openapi.json", "/v1/models", "/nothing"):
        answer = small.get(path, **headers)
        assert fault(answer) == (401, "api_key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert FACTS.task not in answer.text
    assert small.get("/health", **headers).status_code == 200
    assert FACTS.task not in small.get("/", **headers).text
    assert fault(small.post("/predict", [{"text": "a"}], **headers))[0] == 401


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}]
)
def test_with_the_key(headers: dict[str, str]) -> None:
    assert Small(gate=Gate(KEY)).get("/model", **headers).json()["name"] == "small"


def test_draining_refuses_and_says_so() -> None:
    small = Small()
    small.service.gate.draining = True
    refused = small.post("/predict", [{"text": "a"}])
    assert fault(refused) == (503, "draining")
    assert "Retry-After" in refused.headers
    assert (small.get("/health").status_code, small.get("/health").json()["status"]) == (503, "draining")
    assert small.get("/metrics").status_code == 200


def test_metrics_are_prometheus_text() -> None:
    small = Small()
    small.post("/predict", [{"text": "abc"}, {"text": "bad"}])
    small.get("/nothing/{else}")
    small.get("/other")
    text = small.get("/metrics").text
    for line in text.splitlines():
        assert re.fullmatch(
            r'# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+', line
        ), line
    assert 'finetune_requests_total{endpoint="/predict",status="200"} 1' in text
    assert 'finetune_requests_total{endpoint="other",status="404"} 2' in text
    assert 'finetune_errors_total{kind="bad_row"} 1' in text
    assert "finetune_rows_total 1" in text
    assert 'finetune_request_seconds_bucket{endpoint="/predict",le="+Inf"} 1' in text


@pytest.mark.parametrize(
    "facts", [FACTS, WRITING, replace(FACTS, image="image", roles={"image": "An image."}, name="<b>&'\"")]
)
def test_pages_run_only_their_own_script(facts: Any) -> None:
    small = Small(facts)
    for path in ("/", "/docs"):
        answer = small.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert answer.status_code == 200
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert policy.count("sha256-") == answer.text.count("<style>") + answer.text.count("<script>")
        assert not re.search(r"""(src|href)=["'](https?:)?//""", answer.text)
        assert " style=" not in answer.text and not re.search(r"\son[a-z]+=", answer.text)
        assert "<b>&'" not in answer.text
    api = small.get("/openapi.json").json()
    assert ("/v1/chat/completions" in api["paths"]) is facts.chats
    assert api["servers"] == [{"url": "http://127.0.0.1:8000"}]


def test_pages_with_other_addresses_are_not_kept() -> None:
    """/docs shows the address that the client used, so pages must not be remembered without end."""
    small = Small()
    for port in range(100):
        assert small.get("/docs", base=f"http://127.0.0.1:{port + 1}").status_code == 200
    assert _policy.cache_info().currsize <= 8


def test_every_answer_forbids_the_browser_what_it_can() -> None:
    for answer in (Small().get("/health"), Small().get("/nothing"), Small().post("/predict", b"x")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_reply_as_openai_gives_it() -> None:
    small = Small(WRITING)
    answer = small.post("/v1/chat/completions", {**CHAT, "model": "small", "max_tokens": 2, "user": "me"})
    body = answer.json()
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two "},
            "finish_reason": "length",
            "logprobs": None,
        }
    ]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert (body["object"], body["model"], body["id"][:9]) == ("chat.completion", "small", "chatcmpl-")
    assert answer.headers["X-Ignored-Parameters"] == "user"
    (listed,) = small.get("/v1/models").json()["data"]
    assert listed["id"] == "small"
    assert small.get("/v1/models/small").json() == listed
    other = small.get("/v1/models/other")
    assert fault(other) == (404, "no_model") and "small" in other.json()["error"]["message"]
    assert fault(small.post("/v1/models/small", {}))[0] == 405


def test_completions_of_several_prompts_and_their_logprobs() -> None:
    body = Small(WRITING).post("/v1/completions", {"prompt": ["a b", "c"], "logprobs": 1}).json()
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in body["choices"]] == [
        (0, "a b ", "stop"),
        (1, "c ", "stop"),
    ]
    assert body["choices"][0]["logprobs"] == {"tokens": ["b"], "token_logprobs": [-0.5]}


def events_of(answer: httpx.Response) -> list[Any]:
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_a_stream_has_the_same_text_and_usage() -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    first, *events, last = events_of(Small(WRITING).post("/v1/chat/completions", body))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "one two three "
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "stop"]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
    assert len({event["id"] for event in (first, *events, last)}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_cannot_be_answered_has_a_status(stream: bool) -> None:
    small = Small(WRITING)
    assert fault(small.post("/v1/completions", {"prompt": "fail", "stream": stream})) == (400, "too_long")
    assert small.service.texts.count == small.backend.living == 0


def test_an_error_in_the_middle_of_a_stream_is_an_event() -> None:
    small = Small(WRITING)
    events = events_of(small.post("/v1/completions", {"prompt": "one fail two", "stream": True}))
    assert events[-1]["error"]["code"] == "too_long"
    assert small.service.texts.count == 0


def test_texts_at_once_are_limited() -> None:
    small = Small(WRITING)

    async def use(client: httpx.AsyncClient) -> list[int]:
        body = {"prompt": "word " * 20}
        answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(5)))
        return sorted(answer.status_code for answer in answers)

    assert small.run(use) == [200, 200, 429, 429, 429]


def test_other_content_types_are_no_json() -> None:
    answer = Small(WRITING).post("/v1/completions", {"prompt": "a"}, **{"Content-Type": "text/plain"})
    assert fault(answer) == (415, "content_type")


def test_names_of_hosts() -> None:
    assert [host_name(host) for host in ("a:1", "[::1]:2", "A.", "")] == ["a", "::1", "a", ""]
    assert [
        is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "example.org")
    ] == [
        *[True] * 4,
        *[False] * 3,
    ]
