"""What `finetune serve` refuses before it starts anything, and where it puts replicas."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

import pytest

from finetune.app.serve import check_installed, place_replicas, read_key, see_only, serve
from finetune.app.serve_options import ServeOptions
from finetune.errors import UserError


def start(**changes: Any) -> None:
    serve(ServeOptions("/nowhere", **{"port": 0, "replicas": 1, **changes}))


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    with pytest.raises(UserError, match="uvicorn") as error:
        check_installed()
    assert "finetune[serve]" in error.value.remedy


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_an_address_of_the_network_needs_a_key(host: str) -> None:
    with pytest.raises(UserError, match="no API key"):
        start(host=host)


@pytest.mark.parametrize(("value", "told"), [(None, "not set"), ("", "not set"), ("short", "5 characters")])
def test_keys(monkeypatch: pytest.MonkeyPatch, value: str | None, told: str) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    with pytest.raises(UserError, match=told) as error:
        read_key("A_KEY")
    assert not value or value not in str(error.value)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="another program"):
            start(port=other.getsockname()[1])


@pytest.mark.parametrize(
    ("replicas", "layers", "gpus", "places"),
    [
        *((None, 1, 0, [[]]), (2, 1, 0, [[], []]), (None, 1, 2, [[0], [1]]), (3, 1, 2, [[0], [1], [0]])),
        *((None, 2, 4, [[0, 1], [2, 3]]), (1, 2, 4, [[0, 1]])),
    ],
)
def test_places_of_replicas(replicas: int | None, layers: int, gpus: int, places: list[list[int]]) -> None:
    assert place_replicas(replicas, layers, gpus) == places


@pytest.mark.parametrize(("replicas", "layers", "gpus"), [(None, 2, 1), (2, 4, 4), (None, 2, 0)])
def test_too_few_gpus(replicas: int | None, layers: int, gpus: int) -> None:
    with pytest.raises(UserError, match="need"):
        place_replicas(replicas, layers, gpus)


def test_a_replica_sees_its_gpus_alone() -> None:
    assert see_only([], {"CUDA_VISIBLE_DEVICES": "3"}) == {}
    assert see_only([1, 2], {}) == {"CUDA_VISIBLE_DEVICES": "1,2"}
    assert see_only([1], {"CUDA_VISIBLE_DEVICES": "4, GPU-5a"}) == {"CUDA_VISIBLE_DEVICES": "GPU-5a"}
