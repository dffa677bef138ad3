"""The server on a real socket: slow and broken clients, clients that leave, and how it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

MODULE = "tests.unit.inference.serving.small_backend"


class Server:
    """A server of small_backend in a process of its own."""

    def __init__(self, *limits: str, **environment: str) -> None:
        command = [sys.executable, "-m", MODULE, "server", "0", *limits]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.address = f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def send(self, raw: bytes) -> bytes:
        """Everything that the server says to these bytes."""
        with self.connect() as sock:
            with suppress(OSError):
                sock.sendall(raw)
            return everything(sock)

    def length(self, text: str) -> int:
        return int(
            httpx.post(f"{self.address}/predict", json=[{"text": text}], timeout=20).json()["predictions"][0]["length"]
        )

    def in_flight(self) -> int:
        lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        return int(next(line for line in lines if line.startswith("finetune_waiting_rows ")).split()[1])

    def end(self, number: int = signal.SIGTERM, seconds: float = 10) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


def everything(sock: socket.socket) -> bytes:
    said = b""
    with suppress(OSError):
        while part := sock.recv(65536):
            said += part
    return said


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    limits = getattr(request, "param", ())
    server = Server(*limits)
    yield server
    server.process.kill()
    server.process.wait()


def request_of(rows: Any, *, close: bool = True) -> bytes:
    body = json.dumps(rows).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return (head + ("Connection: close\r\n" if close else "") + "\r\n").encode() + body


SLOW = ("header_seconds=0.3", "body_seconds=0.3", "keep_alive_seconds=1", "write_seconds=0.5", "body_bytes=100000")


@pytest.mark.parametrize("server", [SLOW], indirect=True)
def test_slow_clients_are_let_go(server: Server) -> None:
    for raw, told in ((b"", b""), (b"POST /pre", b""), (request_of([{"text": "abc"}])[:-4], b" 408 "), (b"\r\n", b"")):
        began = time.monotonic()
        said = server.send(raw)
        assert time.monotonic() - began < 5, raw
        assert told in said.partition(b"\r\n")[0]
    with server.connect() as sock:  # a byte now and then is no excuse
        began = time.monotonic()
        with suppress(OSError):
            for byte in b"POST /predict HTTP/1.1\r\nX-Long: " + b"a" * 100:
                sock.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - began < 4
    assert server.length("abc") == 3


@pytest.mark.parametrize("server", [SLOW], indirect=True)
def test_hostile_requests_do_not_keep_good_ones_from_an_answer(server: Server) -> None:
    draw = random.Random(0)
    good = request_of([{"text": "abc"}])
    hostile = [
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\nx",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET /%00%ff?%gg HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        request_of([{"text": "\ud800"}]),
        request_of([{"text": "a" * 200_000}]),
    ]
    for _ in range(150):
        raw = draw.choice([*hostile, good, bytes(draw.randrange(256) for _ in range(40))])
        cut = raw[: draw.randrange(len(raw) + 1)] if draw.random() < 0.3 else raw
        with server.connect() as sock, suppress(OSError):
            sock.sendall(cut)
            if draw.random() < 0.3:
                sock.shutdown(socket.SHUT_WR)
        if draw.random() < 0.2:
            assert b'"length":3' in server.send(good)
    assert server.process.poll() is None
    assert server.in_flight() == 0
    assert server.end() == 0
    assert server.process.stderr is not None
    assert "Traceback" not in server.process.stderr.read()


def test_several_requests_on_one_connection(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"".join(request_of([{"text": "a" * size}], close=size == 5) for size in range(1, 6)))
        said = everything(sock)
    assert [f'"length":{size},'.encode() in said for size in range(1, 6)] == [True] * 5


def test_a_client_that_leaves_takes_its_request_with_it(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(request_of([{"text": "sleep 30"}]))
        while server.in_flight() == 0:
            time.sleep(0.02)
    began = time.monotonic()
    while server.in_flight():
        assert time.monotonic() - began < 5
        time.sleep(0.02)


def test_a_body_that_is_too_large_is_answered(server: Server) -> None:
    server.process.kill()
    small = Server("body_bytes=1000")
    answer = httpx.post(
        f"{small.address}/predict", content=b"x" * 3_000_000, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert small.end() == 0


def test_sigterm_answers_what_is_accepted_and_refuses_what_comes(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(request_of([{"text": "sleep 1.0"}]))
        while server.in_flight() == 0:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert httpx.post(f"{server.address}/predict", json=[{"text": "a"}]).status_code == 503
        assert httpx.get(f"{server.address}/health").json()["status"] == "draining"
        assert b'"length":9' in everything(sock)
    assert server.process.wait(10) == 0
    assert server.process.stdout is not None
    first, last = server.process.stdout.read().splitlines()
    assert first.startswith("SIGTERM: draining 1 request, at most 30 seconds")
    assert last == "ended: 1 request answered"


def test_a_client_that_leaves_while_the_server_drains_is_not_counted_as_answered(server: Server) -> None:
    with server.connect() as stays:
        stays.sendall(request_of([{"text": "sleep 0.8"}]))
        with server.connect() as leaves:
            leaves.sendall(request_of([{"text": "sleep 30"}]))
            while server.in_flight() < 2:
                time.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert b'"length":9' in everything(stays)
    assert server.process.wait(10) == 0
    assert server.process.stdout is not None
    assert "ended: 1 of 2 requests answered; 1 client closed" in server.process.stdout.read()


def test_draining_ends_in_time_and_says_what_is_lost() -> None:
    server = Server("drain_seconds=0.3")
    with server.connect() as sock:
        sock.sendall(request_of([{"text": "sleep 60"}]))
        while server.in_flight() == 0:
            time.sleep(0.02)
        assert server.end() == 1
    assert server.process.stdout is not None
    assert "1 request unanswered" in server.process.stdout.read()


def test_a_second_signal_ends_it_at_once(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(request_of([{"text": "sleep 60"}]))
        while server.in_flight() == 0:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        began = time.monotonic()
        assert server.end(signal.SIGINT) == 130
        assert time.monotonic() - began < 4
    assert server.process.stdout is not None
    assert "ended with 1 request unanswered" in server.process.stdout.read()


def test_an_idle_server_ends_within_a_second(server: Server) -> None:
    with server.connect():
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began < 8
    assert server.process.stdout is not None
    assert server.process.stdout.read() == "SIGTERM: ended; no request was in flight\n"


def test_a_stream_ends_with_its_reader() -> None:
    server = Server(SMALL_WRITES="1")
    body = {"prompt": "word " * 5000, "stream": True}
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
    began = time.monotonic()
    while "finetune_writing_texts 0" not in httpx.get(f"{server.address}/metrics").text:
        assert time.monotonic() - began < 5
        time.sleep(0.02)
    assert server.end() == 0


def test_the_front_process_needs_no_torch() -> None:
    modules = "finetune.app.serve, finetune.inference.serving.server, finetune.inference.serving.pool"
    code = f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"
