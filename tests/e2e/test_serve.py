"""`finetune serve` on a run: two replicas answer as `finetune.load` does, survive a kill, and drain on SIGTERM."""

import os
import re
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from finetune.app.loaded import load

pytestmark = pytest.mark.timeout(600)
KEY = "k" * 32


@pytest.fixture(scope="module")
def served(undisturbed):
    """(address, process, run) of a server with two replicas and a key."""
    run, _ = undisturbed
    command = [sys.executable, "-m", "finetune", "serve", str(run), "--port", "0", "--replicas", "2", "--name", "tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TEST_KEY": KEY}
    process = subprocess.Popen(
        [*command, "--api-key-env", "TEST_KEY"], stdout=subprocess.PIPE, text=True, env=environment
    )
    address = None
    for line in process.stdout:
        if found := re.search(r"^serving tiny .*(http://127.0.0.1:\d+)$", line):
            address = found[1]
            break
    yield address, process, run
    process.kill()
    process.wait()


def ask(address, rows, **options):
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{address}/predict", json={"rows": rows, **options}, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_answers_are_those_of_python(served):
    address, _, run = served
    rows = [{"text": f"the film was {word}"} for word in ("fine", "dull", "lovely", "cold")] + [{"text": ""}]
    ours, expected = ask(address, rows, top_k=2), list(load(run).predict(rows, top_k=2))
    assert len(ours) == len(expected) == 5
    for one, other in zip(ours[:4], expected[:4], strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert [item["label"] for item in one["labels"]] == [item["label"] for item in other["labels"]]
    assert ours[4] == expected[4]
    assert httpx.post(f"{address}/predict", json=rows).status_code == 401


def test_examples_of_its_docs_work(served):
    """Those of text: /openapi.json holds the examples that /docs shows."""
    address, _, _ = served
    paths = httpx.get(f"{address}/openapi.json", headers={"X-API-Key": KEY}).json()["paths"]
    examples = [
        example for methods in paths.values() for operation in methods.values() for example in operation["x-examples"]
    ]
    examples = [example for example in examples if "@" not in example]  # a file of the reader's
    assert len(examples) == 6
    for example in examples:
        command = f"{example} -sf -H 'X-API-Key: {KEY}'"
        assert subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout, example


def test_a_killed_replica_is_started_again_and_the_server_ends_when_asked(served):
    address, process, _ = served
    health = f"{address}/health"
    while httpx.get(health).json()["replicas"]["ready"] < 2:
        time.sleep(0.1)
    replicas = psutil.Process(process.pid).children()
    replicas[0].send_signal(signal.SIGKILL)
    assert [record["row"] for record in ask(address, [{"text": "fine"}] * 100)] == list(range(100))
    while httpx.get(health).json()["replicas"]["ready"] < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not [one for one in replicas if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
