"""Replicas as processes: rows come back in order, one that ends is started again, and what it worked on is tried once more."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from finetune.errors import FinetuneError
from finetune.inference.serving import pool as pool_module
from finetune.inference.serving.faults import RequestFault
from finetune.inference.serving.messages import Answers, Sampling
from finetune.inference.serving.pool import ReplicaPool

MODULE = "tests.unit.inference.serving.small_backend"


class Told:
    """What a pool tells."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failures: list[FinetuneError] = []


def run(use: Callable[[ReplicaPool, Told], Awaitable[Any]], count: int = 2, **environment: str) -> Told:
    def start(number: int, sock: socket.socket) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", MODULE, "replica", str(sock.fileno())]
        return subprocess.Popen(command, pass_fds=[sock.fileno()], env={**os.environ, **environment})

    told = Told()

    async def main() -> None:
        pool = ReplicaPool(start, count, notify=told.lines.append, failed=told.failures.append)
        try:
            async with asyncio.timeout(60):
                await use(pool, told)
        finally:
            processes = pool.processes
            await pool.close()
        assert processes
        for process in processes:
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)

    asyncio.run(main())
    return told


async def all_ready(pool: ReplicaPool) -> None:
    while pool.replicas[0] < pool.replicas[1]:
        await asyncio.sleep(0.01)


async def ask(pool: ReplicaPool, *texts: str) -> list[Any]:
    return await pool.predict([{"text": text} for text in texts], top_k=1, threshold=None)


def test_rows_go_to_both_replicas_and_come_back_in_order() -> None:
    async def use(pool: ReplicaPool, told: Told) -> None:
        with pytest.raises(RequestFault):
            _ = pool.facts
        early = asyncio.ensure_future(ask(pool, "before", "any is ready"))
        await all_ready(pool)
        assert pool.facts.name == "small"
        assert [record["length"] for record in await early] == [6, 12]
        records = await ask(pool, *("a" * (index % 7) for index in range(300)))
        assert [record["row"] for record in records] == list(range(300))
        assert [record["length"] for record in records] == [index % 7 for index in range(300)]
        assert {record["process"] for record in records} == set(pool.processes)

    assert not run(use).failures


def test_a_row_that_ends_its_replica_fails_and_others_are_answered() -> None:
    async def use(pool: ReplicaPool, told: Told) -> None:
        await all_ready(pool)
        slow = [asyncio.ensure_future(ask(pool, "sleep 0.3")) for _ in range(4)]
        (record,) = await ask(pool, "die")
        assert record["error"]["kind"] == "failed"
        assert [[one["length"] for one in await answer] for answer in slow] == [[9]] * 4
        assert [one["length"] for one in await ask(pool, "abc")] == [3]
        await all_ready(pool)

    told = run(use)
    assert not told.failures
    assert len([line for line in told.lines if "is started again" in line]) == 2


def test_a_replica_that_is_killed_loses_no_request() -> None:
    async def use(pool: ReplicaPool, told: Told) -> None:
        await all_ready(pool)
        answers = [asyncio.ensure_future(ask(pool, "sleep 0.4", "ab")) for _ in range(6)]
        await asyncio.sleep(0.1)
        os.kill(pool.processes[0], signal.SIGKILL)
        assert [[one.get("length") for one in await answer] for answer in answers] == [[9, 2]] * 6

    assert not run(use).failures


def test_a_replica_that_is_halted_is_named_and_gets_nothing_to_do(monkeypatch) -> None:
    monkeypatch.setattr(pool_module, "HALTED_SECONDS", 0.05)

    async def use(pool: ReplicaPool, told: Told) -> None:
        await all_ready(pool)
        halted, other = pool.processes
        os.kill(halted, signal.SIGSTOP)
        while pool.replicas != (1, 2):
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*(ask(pool, "ab") for _ in range(6)))
        assert {record["process"] for (record,) in answers} == {other}
        assert told.lines == [
            f"replica 0 is halted (SIGSTOP) and gets nothing to do; to continue it: kill -CONT {halted}"
        ]
        os.kill(halted, signal.SIGCONT)
        await all_ready(pool)
        late = asyncio.gather(*(ask(pool, "sleep 0.4") for _ in range(4)))
        await asyncio.sleep(0.1)
        os.kill(halted, signal.SIGTERM)
        assert [record["length"] for (record,) in await late] == [9] * 4
        assert told.lines[1].startswith("replica 0 was killed by SIGTERM, and is started again; ")

    assert not run(use).failures


def test_requests_that_nobody_waits_for_take_no_memory() -> None:
    """Clients that connect and leave while all replicas are loading or busy."""

    async def use(pool: ReplicaPool, told: Told) -> None:
        first = asyncio.ensure_future(ask(pool, "first"))
        gone = [asyncio.ensure_future(ask(pool, "x" * 100_000)) for _ in range(20)]
        await asyncio.sleep(0)
        assert len(pool._waiting) == 21
        for one in gone:
            one.cancel()
        await asyncio.wait(gone)
        assert len(pool._waiting) == 1
        assert [record["length"] for record in await first] == [5]

    assert not run(use, count=1).failures


def test_texts_are_streamed_and_end_with_their_reader() -> None:
    async def use(pool: ReplicaPool, told: Told) -> None:
        await pool.ready.wait()
        pieces = [piece async for piece in pool.write(Sampling({"prompt": "one two three"}))]
        assert [piece.text for piece in pieces] == ["one ", "two ", "three "]
        assert pieces[-1].finish_reason == "stop"
        stream = pool.write(Sampling({"prompt": "word " * 10_000}))
        assert (await anext(stream)).text == "word "
        await stream.aclose()
        assert not any(link.parts for link in pool._links)
        begun = pool.write(Sampling({"prompt": "one die"}))
        assert (await anext(begun)).text == "one "
        assert (await anext(begun)).error is not None  # the client has its beginning: it cannot be tried again

    assert not run(use, count=1, SMALL_WRITES="1").failures


def test_a_model_that_cannot_be_served_ends_the_server() -> None:
    async def use(pool: ReplicaPool, told: Told) -> None:
        while not told.failures:
            await asyncio.sleep(0.01)

    told = run(use, count=1, SMALL_REFUSES="1")
    assert str(told.failures[0]) == "here: no such model"
    assert told.failures[0].exit_code == 2


def test_a_process_that_cannot_be_started_ends_the_server() -> None:
    def start(number: int, sock: socket.socket) -> subprocess.Popen[bytes]:
        raise OSError("no more processes")

    async def main() -> FinetuneError:
        failures: list[FinetuneError] = []
        pool = ReplicaPool(start, 1, notify=print, failed=failures.append)
        while not failures:
            await asyncio.sleep(0.01)
        with pytest.raises(RequestFault):
            await ask(pool, "a")
        await pool.close()
        return failures[0]

    assert "no more processes" in str(asyncio.run(main()))


def test_a_reply_that_cannot_be_understood_ends_the_server_and_no_request_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = pool_module.receive

    async def receive(reader: asyncio.StreamReader) -> Any:
        message = await whole(reader)
        if isinstance(message, Answers):
            raise pickle.UnpicklingError("invalid load key")
        return message

    monkeypatch.setattr(pool_module, "receive", receive)

    async def use(pool: ReplicaPool, told: Told) -> None:
        await all_ready(pool)
        (record,) = await ask(pool, "a")
        assert record["error"]["kind"] == "failed"
        with pytest.raises(RequestFault, match="ending"):
            await ask(pool, "b")

    (error,) = run(use, 1).failures
    assert "cannot be understood: UnpicklingError: invalid load key" in error.what and error.where == "replica 0"
