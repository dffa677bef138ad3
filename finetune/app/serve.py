"""`finetune serve`: answers over HTTP. This process parses and queues; the model is in replicas, processes of their own."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finetune.app.model_places import check_places
from finetune.app.serve_options import ServedSource, ServeOptions
from finetune.ending import die_with_parent
from finetune.errors import FinetuneError, UserError
from finetune.inference.pieces.options import PieceOptions
from finetune.recipe.machine import count_gpus
from finetune.recipe.quotas import THREADS, threads_each
from finetune.terminal import print_line, say
from finetune.units import format_number

if TYPE_CHECKING:
    from finetune.inference.serving.app import Service
    from finetune.inference.serving.guard import Gate
    from finetune.inference.serving.limits import Limits

SHORTEST_KEY = 16  # characters


def serve(options: ServeOptions) -> int:
    """Serve until a signal; returns the exit code.

    options.replicas: None for one on each GPU, or on each group of `layers` GPUs, which share the layers of one copy.
    options.api_key_env: name of the variable that holds the key, "" for none. options.allow_host: further names that the
    Host header may have. Raises: UserError, TrainingFailed.
    """
    check_installed()
    source, host = options.source, options.host
    PieceOptions(**source.pieces).check_values()
    from finetune.inference.serving.limits import Limits
    from finetune.inference.serving.server import Serving, bind

    gate = _open_gate(options)
    limits = Limits(**options.limits)
    places = place_replicas(options.replicas, options.layers, count_gpus())
    sock = bind(host, options.port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"

    async def run() -> int:
        open_pool = _pool_opener(source, places, address, secret=options.api_key_env)
        return await Serving(sock, _service_maker(limits, gate), open_pool, print_line).run()

    try:
        check_places(source.source)
        print_line(f"loading {source.source} ({format_number(len(places), 'replica')})")
        return asyncio.run(run())
    finally:
        sock.close()


def _open_gate(options: ServeOptions) -> Gate:
    """Whom the server answers. Raises: UserError for an address of the network without a key."""
    from finetune.inference.serving.guard import LOCAL_NAMES, Gate, is_loopback

    host, key, local = options.host, read_key(options.api_key_env), is_loopback(options.host)
    if not local and not key and not options.allow_unauthenticated:
        raise UserError(
            f"{host} can be reached from other machines, and no API key is required",
            where="--host",
            remedy="Name the variable with the key, --api-key-env NAME, or allow anyone with --allow-unauthenticated.",
        )
    restricted = local or options.allow_host
    hosts = {*LOCAL_NAMES, host.lower(), *map(str.lower, options.allow_host)} if restricted else set()
    return Gate(key, hosts)


def place_replicas(replicas: int | None, layers: int, gpus: int) -> list[list[int]]:
    """Numbers of the GPUs of each replica: 2 replicas of 2 GPUs each -> [[0, 1], [2, 3]]; [] for one on the CPU.

    Several replicas may share a GPU, but not with a copy whose layers are spread. Raises: UserError for too few GPUs.
    """
    if layers == 1:
        return [[number % gpus] if gpus else [] for number in range(replicas or max(1, gpus))]
    count = replicas or max(1, gpus // layers)
    if count * layers > gpus:
        raise UserError(
            f"{count} replicas on {layers} GPUs each need {count * layers} GPUs, and there are {gpus}",
            where="--layers",
            remedy="Use fewer of them, or a quantized model (--quantization 4bit).",
        )
    return [list(range(number * layers, (number + 1) * layers)) for number in range(count)]


def see_only(gpus: Sequence[int], environment: Mapping[str, str]) -> dict[str, str]:
    """The variable with which a process sees these GPUs alone, numbered from 0; {} for none.

    gpus: as this process numbers them, which may see only some of the machine's itself.
    """
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = [visible[gpu] if visible else str(gpu) for gpu in gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)} if names else {}


def check_installed() -> None:
    """Raises: UserError that names the extra where the server's packages are missing."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"not installed: {' and '.join(missing)}",
            where="finetune serve",
            remedy="Install the extra `serve`: pip install 'finetune[serve]'",
        )


def read_key(variable: str) -> str:
    """The API key in an environment variable. Raises: UserError if there is none, or one that can be guessed."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"the variable {variable} is not set, or empty", where="--api-key-env", remedy=f"Export {variable} first."
        )
    if len(key) < SHORTEST_KEY:
        raise UserError(
            f"the key in {variable} has {len(key)} characters, fewer than {SHORTEST_KEY}",
            where="--api-key-env",
            remedy="Use a long random one, such as that of: openssl rand -hex 24",
        )
    return key


def _service_maker(limits: Limits, gate: Gate) -> Callable[[Any], Service]:
    from finetune.inference.serving.app import Service

    def make(pool: Any) -> Service:
        service = Service(pool, limits, gate)
        pool.ran = service.count_batch
        pool.restarted = service.metrics.restarts.add
        return service

    return make


def _pool_opener(
    source: ServedSource, places: Sequence[Sequence[int]], address: str, *, secret: str
) -> Callable[[Any], Any]:
    from finetune.inference.serving.pool import ReplicaPool

    threads = str(threads_each(len(places)))

    def start(number: int, sock: socket.socket) -> subprocess.Popen[bytes]:
        given = {**asdict(source), "gpus": len(places[number])}
        environment = {THREADS: threads, "TOKENIZERS_PARALLELISM": "false", **os.environ}
        environment |= see_only(places[number], os.environ)
        environment.pop(secret, None)
        return subprocess.Popen(
            [sys.executable, "-m", "finetune.app.workers.serve", str(sock.fileno()), json.dumps(given)],
            env=environment,
            pass_fds=[sock.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    async def open_pool(failed: Callable[[FinetuneError], None]) -> ReplicaPool:
        pool = ReplicaPool(start, len(places), notify=say, failed=failed)
        asyncio.ensure_future(_announce(pool, address))  # noqa: RUF006 - ends with the loop
        return pool

    return open_pool


async def _announce(pool: Any, address: str) -> None:
    await pool.ready.wait()
    facts = pool.facts
    for note in facts.notes:
        print_line(note)
    asked = "/v1/chat/completions" if facts.chats else "/v1/completions" if facts.writes else "/predict"
    print_line(f"serving {facts.name} ({facts.title or facts.task}) on {facts.device}: {address}")
    print_line(f"  {address}{asked}   {address}/docs   {address}/metrics   (Ctrl-C ends)")
