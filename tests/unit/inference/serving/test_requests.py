"""Bodies of requests: every form of rows, and for every fault a status, a kind and the place."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from finetune.inference.serving.asked_rows import AskedRows, parse_rows
from finetune.inference.serving.faults import RequestFault
from finetune.inference.serving.json_body import count_values, parse_json
from finetune.inference.serving.limits import Limits
from finetune.inference.serving.messages import ModelFacts
from finetune.inference.serving.openai_requests import read_chat, read_completion
from tests.unit.inference.serving.small_backend import FACTS, WRITING

LIMITS = Limits(rows=4, characters=100)
TEXTS = replace(FACTS, line_role="text", columns={"text": "review"}, targets=("label",))
IMAGES = ModelFacts("eyes", "object_detection", columns={"image": "photo"}, image="image", options=("threshold",))
JSON = "application/json"


def rows_of(body: Any, content_type: str = JSON, facts: ModelFacts = FACTS, **query: str) -> AskedRows:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_rows(content_type, content, query, facts, LIMITS)


@pytest.mark.parametrize(
    "body", [{"text": "a"}, [{"text": "a"}], {"rows": [{"text": "a"}]}, b'\xef\xbb\xbf[{"text": "a"}]']
)
def test_rows_are_one_a_list_or_under_rows(body: Any) -> None:
    assert rows_of(body).rows == [{"text": "a"}]


def test_rows_are_lines() -> None:
    assert rows_of(b'{"text": "a"}\r\n\n{"text": "b"}\n', "application/x-ndjson").rows == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("body", ["a", ["a"], {"rows": ["a"]}, [{"text": "a"}]])
def test_a_row_may_be_a_text_alone(body: Any) -> None:
    assert rows_of(body, facts=TEXTS).rows == [{"text": "a"}]
    assert rows_of(b'"a"\n"b"', "application/jsonl", TEXTS).rows == [{"text": "a"}, {"text": "b"}]
    assert rows_of(["aGk="], facts=replace(IMAGES, line_role="image")).rows == [{"image": "aGk="}]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"row": [{"text": "a"}]}, "did you mean rows"),
        ({"Rows": []}, "did you mean rows"),
        ({"text": "a", "top_k": 3}, "into the query"),
        ({"text": "a", "topk": 3}, "did you mean top_k"),
        ({"txt": "a"}, "did you mean text"),
        ({"reviews": "a"}, "did you mean review"),
        ({"quite": "other"}, "a row with review or text"),
        ({}, "without keys"),
    ],
)
def test_an_object_that_is_neither_rows_nor_a_row(body: Any, told: str) -> None:
    with pytest.raises(RequestFault) as fault:
        rows_of(body, facts=TEXTS)
    assert (fault.value.status, fault.value.kind) == (400, "unknown_option")
    assert told in fault.value.message


@pytest.mark.parametrize("body", [{"review": "a", "label": "x", "id": 5}, {"sentence": "a"}, {"Text": "a"}])
def test_a_lone_row_may_have_columns_of_its_own(body: Any) -> None:
    assert rows_of(body, facts=TEXTS).rows == [body]


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 3_000_000 + b"[]]",
        b"[" + b'"",' * 3_000_000 + b'""]',
        b'{"rows": [' + b"{}," * 3_000_000 + b"{}]}",
        b'[{"a": [' + b"0," * 3_000_000 + b"0]}]",
        b'["' + b'\\",[' * 3_000_000,
    ],
)
def test_millions_of_values_are_refused_before_they_are_made(body: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(RequestFault) as fault:
        rows_of(body)
    assert fault.value.status in (400, 413)
    assert time.monotonic() - began < 5
    with pytest.raises(RequestFault):
        rows_of(b"\n \r\n" * 1_000_000 + b"[]\n" * 1_000_000, "application/jsonl")


def test_commas_and_brackets_of_texts_are_no_values() -> None:
    text = "[,{" * 20 + '"'
    assert count_values(json.dumps([text] * 3).encode(), 50) == 4
    assert rows_of([{"text": text}]).rows == [{"text": text}]
    assert count_values(b'"\\\\",1,2,3,4', 3) == 4


def test_a_row_of_many_values_is_alone_in_that() -> None:
    limits = Limits(values=50)
    body = json.dumps([{"text": "a"}, {"text": [[[]] * 20, {"a": {}}] * 3}]).encode()
    asked = parse_rows(JSON, body, {}, FACTS, limits)
    assert asked.faults[1]["error"]["kind"] == "too_long" and "values" in asked.faults[1]["error"]["message"]
    assert (len(asked.rows), asked.values) == (1, 2)


def test_many_parts_of_a_form_are_counted_before_they_are_cut() -> None:
    body = b"--X\r\n" * 2_000_000 + b"--X--\r\n"
    with pytest.raises(RequestFault, match="2,000,000 parts"):
        rows_of(body, "multipart/form-data; boundary=X", IMAGES)


def test_a_key_twice_among_many_is_found_at_once() -> None:
    body = b"{" + b",".join(b'"%d":0' % number for number in range(200_000)) + b',"199999":0}'
    began = time.monotonic()
    with pytest.raises(RequestFault, match="'199999' is in one object twice"):
        rows_of(body)
    assert time.monotonic() - began < 5


def test_options_are_beside_rows_or_in_the_query() -> None:
    assert rows_of({"rows": [{}], "top_k": 3}).top_k == 3
    assert rows_of([{}], top_k="3").top_k == 3
    asked = rows_of(b"bytes", "image/png", IMAGES, threshold="0.25")
    assert (asked.threshold, asked.rows) == (0.25, [{"image": b"bytes"}])


def test_files_of_a_form_are_rows_in_order() -> None:
    body = (
        b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nX: y\r\n\r\nA\r\n\r\nB\r\n'
        b'--X\r\nContent-Disposition: form-data; name="threshold"\r\n\r\n0.5\r\n'
        b'--X\r\nContent-Disposition: form-data; name="f"; filename="b.png"\r\n\r\nC\r\n--X--\r\n'
    )
    asked = rows_of(body, 'multipart/form-data; boundary="X"', IMAGES)
    assert asked.rows == [{"image": b"A\r\n\r\nB"}, {"image": b"C"}]
    assert asked.threshold == 0.5
    for cut in (body[:-6], body[:40], b"", b"--X--"):
        with pytest.raises(RequestFault) as fault:
            rows_of(cut, "multipart/form-data; boundary=X", IMAGES)
        assert fault.value.status == 400


def test_a_row_that_is_too_long_is_alone_in_that() -> None:
    asked = rows_of([{"text": "a"}, {"text": "b" * 101}, {"text": "c"}])
    assert [row["text"] for row in asked.rows] == ["a", "c"]
    merged = asked.merged([{"row": 0, "length": 1}, {"row": 1, "length": 1}])
    assert [record["row"] for record in merged] == [0, 1, 2]
    assert merged[1]["error"]["kind"] == "too_long"
    assert merged[2] == {"row": 2, "length": 1}


def test_an_image_is_not_counted_as_text() -> None:
    assert not rows_of([{"photo": "A" * 500}], facts=IMAGES).faults


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "line 1, column 2"),
        (b"\xff\xfe", 400, "UTF-8"),
        (b"3", 400, "a number"),
        (b"null", 400, "null"),
        (b'"text"', 400, "text"),
        (b"[]", 400, "no rows"),
        (b'{"rows": []}', 400, "no rows"),
        (b'{"rows": {}}', 400, "rows is an object"),
        (b"[1]", 400, "row 0 is a number"),
        (b'[{"a": 1}, [2]]', 400, "row 1 is a list"),
        (b'{"rows": [{}], "topk": 3}', 400, "did you mean top_k"),
        (b'{"rows": [{}], "top_k": 0}', 400, "top_k is 0"),
        (b'{"rows": [{}], "top_k": true}', 400, "top_k"),
        (b'{"rows": [{}], "top_k": 1.5}', 400, "top_k"),
        (b'{"rows": [{}], "threshold": 0.5}', 400, "does not apply"),
        (b'{"a": NaN}', 400, "NaN"),
        (b'{"a": 1, "a": 2}', 400, "twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", 400, "JSON"),
        (b"[" * 100_000, 400, "deep"),
        (b'{"a": ' * 80 + b"1" + b"}" * 80, 400, "deep"),
        (b"[{}, {}, {}, {}, {}]", 413, "5 rows"),
    ],
)
def test_faults_of_a_body(body: bytes, status: int, told: str) -> None:
    with pytest.raises(RequestFault) as fault:
        rows_of(body)
    assert fault.value.status == status
    assert told in fault.value.message
    assert len(json.dumps(fault.value.body())) < 600


@pytest.mark.parametrize(
    ("content_type", "facts", "told"),
    [
        ("text/plain", FACTS, "text/plain"),
        ("", FACTS, "none"),
        ("image/png", FACTS, "reads no images"),
        ("x" * 9999, FACTS, "x"),
    ],
)
def test_other_content_types_are_refused(content_type: str, facts: ModelFacts, told: str) -> None:
    with pytest.raises(RequestFault) as fault:
        rows_of(b"x", content_type, facts)
    assert fault.value.status == 415
    assert told in fault.value.message
    assert len(fault.value.message) < 400


def test_an_option_twice_is_refused() -> None:
    with pytest.raises(RequestFault, match="in the body and in the query"):
        rows_of({"rows": [{}], "top_k": 3}, top_k="2")
    with pytest.raises(RequestFault, match="unknown option 'k'"):
        rows_of([{}], k="2")
    with pytest.raises(RequestFault, match="not a number"):
        rows_of([{}], top_k="many")


def test_half_of_a_surrogate_pair_is_read() -> None:
    """Encoding refuses the row that has it; the others of the request are answered."""
    assert parse_json(b'"\\ud800"') == "\ud800"


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def test_parameters_of_a_chat() -> None:
    body = {
        **{
            "max_completion_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "seed": 3,
            "stop": "\n",
            "stream": True,
        },
        **{
            "stream_options": {"include_usage": True},
            "user": "me",
            "presence_penalty": 0,
            "n": 1,
            "tool_choice": "auto",
        },
    }
    asked = read_chat({**CHAT, **body}, WRITING, LIMITS)
    (sampling,) = asked.samplings
    assert sampling.prompt == {"messages": CHAT["messages"]}
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.9, 5)
    assert (sampling.seed, sampling.stop) == (3, ("\n",))
    assert (asked.stream, asked.include_usage, asked.ignored) == (True, True, ("user",))


def test_several_prompts() -> None:
    asked = read_completion({"prompt": ["a", "b"], "logprobs": 1}, WRITING, LIMITS)
    assert [sampling.prompt for sampling in asked.samplings] == [{"prompt": "a"}, {"prompt": "b"}]
    assert all(sampling.logprobs for sampling in asked.samplings)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "logprobs": True}, "logprobs"),
        ({"model": "gpt-4"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a" * 101}]}, "messages"),
    ],
)
def test_what_a_chat_cannot_follow_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestFault) as fault:
        read_chat({**CHAT, **body}, WRITING, LIMITS)
    assert fault.value.param == param
    assert fault.value.status == (404 if param == "model" else 400)


@pytest.mark.parametrize("prompt", [None, 3, [], ["a", 3], [1, 2], {"a": 1}, ["a"] * 65])
def test_prompts_that_are_no_text(prompt: Any) -> None:
    with pytest.raises(RequestFault) as fault:
        read_completion({"prompt": prompt}, WRITING, LIMITS)
    assert fault.value.param == "prompt"
