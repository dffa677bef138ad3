"""`finetune serve` beside what it is made of: its throughput beside predict's, an idle request beside a bare forward pass,
and 10,000 hostile requests.

    python -m benchmarks.inference.server --run runs/quickstart/...         # a text classifier; results: README.md

Both sides have the same rows and as many threads for the model. Clients and the front process run beside it on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from finetune.app.asked_model import AskedModel, open_model
from finetune.data.sources.docstrings import docstring_rows
from finetune.inference.answering import Chunk
from finetune.inference.recording import record_outcome
from finetune.inference.whole_rows import WholeRows
from finetune.tasks.batch import RecordOptions

JSON_HEAD = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{more}\r\n"


def made_texts(count: int) -> list[str]:
    """Texts of real words; their lengths are lognormal (median 20 words, from 1 to 200)."""
    words = " ".join(row["text"] for row in islice(docstring_rows("train"), 2000)).split()
    draw = np.random.default_rng(0)
    lengths = np.clip(np.exp(draw.normal(3.0, 0.8, count)), 1, 200).astype(int)
    starts = draw.integers(0, len(words) - 200, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


class Server:
    """`finetune serve` in processes of its own."""

    def __init__(self, run: str, threads: int) -> None:
        command = [sys.executable, "-m", "finetune", "serve", run, "--port", "0", "--replicas", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"^serving .*http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                return
        raise SystemExit("the server did not start")

    def family(self) -> list[psutil.Process]:
        front = psutil.Process(self.process.pid)
        return [front, *front.children(recursive=True)]

    def memory(self) -> list[float]:
        """MiB that each process has for itself."""
        return [process.memory_full_info().uss / 2**20 for process in self.family()]

    def files(self) -> int:
        return sum(process.num_fds() for process in self.family())

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def request_of(body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    return JSON_HEAD.format(kind=kind, size=len(body), more=more).encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """(status, body) of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = re.search(rb"content-length: (\d+)", head.lower())
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(size[1]) if size else 0)


async def client_load(port: int, texts: list[str], clients: int) -> float:
    """Rows per second of so many clients, each of which sends one row, waits for its answer, and sends the next."""
    waiting = iter(range(len(texts)))
    bodies = [request_of(json.dumps([{"text": text}]).encode()) for text in texts]

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for index in waiting:
            writer.write(bodies[index])
            status, body = await answer(reader)
            assert status == 200 and b'"label"' in body, body
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(texts) / (time.perf_counter() - began)


def predict_speed(asked: AskedModel, texts: list[str]) -> float:
    """Rows per second of what `finetune predict` does with a window on one rank, without its files."""
    answerer, splitter = asked.batch_answerer(), WholeRows(asked.task, asked.artifacts)
    began = time.perf_counter()
    encoded = splitter.split([{"text": text} for text in texts], with_targets=False)
    examples = [{**item[0], "id": index} for index, item in enumerate(encoded) if isinstance(item, list)]
    examples.sort(key=answerer.cost)
    chunks: list[list[dict[str, Any]]] = [[]]
    for example in examples:
        if sum(map(answerer.cost, chunks[-1])) + answerer.cost(example) > answerer.budget:
            chunks.append([])
        chunks[-1].append(example)
    for chunk, outcomes in answerer.run(Chunk((0, number), chunk) for number, chunk in enumerate(chunks)):
        for example, outcome in zip(chunk.examples, outcomes, strict=True):
            record_outcome(asked.task, asked.artifacts, example["id"], outcome, RecordOptions())
    return len(examples) / (time.perf_counter() - began)


def throughput(server: Server, asked: AskedModel, texts: list[str], clients: int, turns: int) -> None:
    ratios, shown = [], []
    for _ in range(turns):
        ours = asyncio.run(client_load(server.port, texts, clients))
        theirs = predict_speed(asked, texts)
        ratios.append(ours / theirs)
        shown.append(f"{ours:.0f}/{theirs:.0f}")
    print(f"{clients} clients, rows/s of the server and of predict: {', '.join(shown)}")
    print(f"median ratio in {turns} paired turns: {statistics.median(ratios):.2f}")
    alone = asyncio.run(client_load(server.port, texts[: len(texts) // 4], 1))
    print(f"one client: {alone:.0f} rows/s")


def idle_latency(server: Server, asked: AskedModel, texts: list[str]) -> None:
    """In paired turns: one request, one bare forward pass of the same text."""
    splitter = WholeRows(asked.task, asked.artifacts)
    (encoded,) = zip(*splitter.split([{"text": text} for text in texts], with_targets=False), strict=True)
    batches = [asked.task.collate(asked.artifacts, [{**example, "id": 0}]) for example in encoded]

    async def main() -> tuple[list[float], list[float]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        requests, passes = [], []
        for text, batch in zip(texts, batches, strict=True):
            body = request_of(json.dumps([{"text": text}]).encode())
            await asyncio.sleep(0.01)
            began = time.perf_counter()
            writer.write(body)
            assert (await answer(reader))[0] == 200
            requests.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
            began = time.perf_counter()
            with torch.inference_mode():
                asked.task.forward(asked.module, batch)
            passes.append(time.perf_counter() - began)
        return requests, passes

    requests, passes = asyncio.run(main())
    ratio = statistics.median(one / other for one, other in zip(requests, passes, strict=True))
    for name, seconds in (("request", requests), ("bare forward pass", passes)):
        low, high = np.percentile(seconds, [50, 99]) * 1000
        print(f"idle {name}: median {low:.1f} ms, p99 {high:.1f} ms")
    print(f"median ratio in {len(texts)} paired turns: {ratio:.2f}")


def hostile_makers(draw: random.Random) -> list[Callable[[], bytes]]:
    """Requests that no good client sends."""

    def noise(size: int) -> bytes:
        return draw.randbytes(draw.randrange(1, size))

    deep = draw.randrange(1, 5000)
    values: list[Any] = [
        None,
        True,
        3,
        -1e300,
        "",
        " ",
        "\u0000",
        "\ud800",
        [],
        {},
        [[]],
        {"text": 3},
        ["a"] * 50,
        "x" * 3000,
    ]
    return [
        lambda: noise(500),
        lambda: request_of(noise(2000)),
        lambda: request_of(noise(200), kind=noise(20).hex()),
        lambda: request_of(b"[" * deep + b"]" * draw.randrange(deep + 1)),
        lambda: request_of(json.dumps({"rows": [{"text": draw.choice(values)}]}).encode()),
        lambda: request_of(json.dumps(draw.choice(values)).encode()),
        lambda: request_of(
            json.dumps([{"text": "a", draw.choice("abc"): draw.choice(values)}] * draw.randrange(20)).encode()
        ),
        lambda: request_of(json.dumps([{"text": "word " * draw.randrange(1, 20_000)}]).encode()),
        lambda: request_of(b'[{"text": "' + b"a" * draw.randrange(600_000) + b'"}]'),
        lambda: request_of(b"x" * 10, more=f"Content-Length: {draw.randrange(10**12)}\r\n"),
        lambda: request_of(b"", more="Transfer-Encoding: chunked\r\n"),
        lambda: (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + noise(50) + b"\r\n"
        ),
        lambda: b"GET /" + b"a" * draw.randrange(100_000) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        lambda: b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * draw.randrange(20_000) + b"\r\n",
        lambda: b"GET /predict HTTP/1.1\r\nHost: " + noise(20).hex().encode() + b"\r\n\r\n",
        lambda: request_of(b"--X\r\n" + noise(300), kind="multipart/form-data; boundary=X"),
        lambda: request_of(noise(300), kind="image/png"),
    ]


async def be_hostile(server: Server, count: int, at_once: int, texts: list[str], *, seed: int) -> dict[str, int]:
    """So many hostile requests, with a good one after every fourth. How many of each there were, and what good ones got."""
    draw = random.Random(seed)
    makers = hostile_makers(draw)
    told: dict[str, int] = {"hostile": 0, "cut": 0, "good": 0, "answered": 0}
    turn = iter(range(count))

    async def attack() -> None:
        raw = draw.choice(makers)()
        cut = draw.random() < 0.3
        told["hostile"] += 1
        told["cut"] += cut
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(raw[: draw.randrange(len(raw) + 1)] if cut else raw)
            if not cut:
                async with asyncio.timeout(draw.choice([0.05, 1.0])):
                    await writer.drain()
                    await reader.read(65536)
            writer.transport.abort()
        except (OSError, TimeoutError):
            pass

    async def ask() -> None:
        told["good"] += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while True:
            writer.write(request_of(json.dumps([{"text": draw.choice(texts)}]).encode()))
            status, body = await answer(reader)
            if status != 429:
                break
            await asyncio.sleep(0.2)  # what a good client does
        told["answered"] += status == 200 and b'"label"' in body
        writer.close()

    async def worker() -> None:
        for index in turn:
            await attack()
            if index % 4 == 0:
                await ask()

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return told


def hostility(server: Server, count: int, texts: list[str]) -> None:
    """In fifths, so that growth can be told from what is filled once."""
    told: dict[str, int] = {}
    memory, files = [], [server.files()]
    for part in range(5):
        for name, number in asyncio.run(be_hostile(server, count // 5, 32, texts, seed=part)).items():
            told[name] = told.get(name, 0) + number
        time.sleep(1)
        memory.append(server.memory())
        files.append(server.files())
    print(f"hostile requests: {told}")
    for name, values in zip(("front process", "replica"), zip(*memory, strict=True), strict=True):
        print(f"MiB of the {name} after each fifth: {', '.join(f'{value:.0f}' for value in values)}")
    print(f"open files: {files}")
    status = asyncio.run(client_load(server.port, texts[:64], 8))
    print(f"afterwards: {status:.0f} rows/s, exit code {server.end()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=Path, help="run folder of a text classifier")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3, help="0: the hostile requests alone")
    parser.add_argument("--threads", type=int, default=1, help="of the model, on both sides")
    parser.add_argument("--hostile", type=int, default=10_000)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    texts, asked = made_texts(given.rows), open_model(given.run)
    server = Server(str(given.run), given.threads)
    try:
        asyncio.run(client_load(server.port, texts[:256], given.clients))
        predict_speed(asked, texts[:256])
        if given.turns:
            throughput(server, asked, texts, given.clients, given.turns)
            idle_latency(server, asked, texts[:200])
        hostility(server, given.hostile, texts)
    finally:
        server.process.kill()


if __name__ == "__main__":
    main()
