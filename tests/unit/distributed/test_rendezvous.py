"""Proves that ranks of one machine meet where nobody else can come: a folder of their own, or the loopback interface."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from finetune.distributed import rendezvous
from finetune.distributed.env import DistributedEnv
from finetune.distributed.failure import Failure, read_failures, write_failure
from finetune.errors import UserError

MINUTE = timedelta(minutes=1)


def test_the_folder_of_a_launch_is_private_and_unpredictable_and_goes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with rendezvous.private_folder(tmp_path) as one, rendezvous.private_folder(tmp_path) as other:
        assert stat.S_IMODE(one.stat().st_mode) == 0o700 and one != other
        assert str(os.getuid()) not in one.name.removeprefix("finetune-") or len(one.name) > 15
    assert not list(tmp_path.iterdir())


def test_where_the_temporary_folder_cannot_be_written_it_is_made_in_the_logs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with rendezvous.private_folder(tmp_path) as folder:
        assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o701])
def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path, monkeypatch, mode: int) -> None:
    monkeypatch.setenv(rendezvous.PRIVATE, str(tmp_path))
    tmp_path.chmod(0o700)
    assert rendezvous.given_folder() == tmp_path
    tmp_path.chmod(mode)
    assert rendezvous.given_folder() is None


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a folder away")
def test_a_folder_of_another_user_and_a_link_are_not_used(tmp_path: Path, monkeypatch) -> None:
    folder, link = tmp_path / "theirs", tmp_path / "link"
    folder.mkdir(mode=0o700)
    link.symlink_to(folder)
    monkeypatch.setenv(rendezvous.PRIVATE, str(link))
    assert rendezvous.given_folder() is None
    os.chown(folder, 65534, 65534)
    monkeypatch.setenv(rendezvous.PRIVATE, str(folder))
    assert rendezvous.given_folder() is None


def test_one_process_opens_no_port_and_a_launcher_that_opened_its_store_is_asked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(rendezvous.PRIVATE, raising=False)
    alone = DistributedEnv(0, 1, 0, 1, "none", "127.0.0.1", 1)
    assert isinstance(rendezvous.open_store(alone, MINUTE), dist.HashStore)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert rendezvous.open_store(DistributedEnv(0, 2, 0, 2, "torchrun", "127.0.0.1", 1), MINUTE) is None
    machines = DistributedEnv(0, 4, 0, 2, "srun", "gpu01", 29500)
    monkeypatch.setenv(rendezvous.PRIVATE, str(tmp_path))
    assert rendezvous.open_store(machines, MINUTE) is None


def test_the_interface_that_a_user_names_is_kept() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "eth1"}
    rendezvous.stay_inside(environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": rendezvous.LOOPBACK}


GOOD = {"rank": 0, "time": 1.0, "what": "w", "where": "", "remedy": "", "exit_code": 1, "echo": False, "log": ""}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 50_000,
        "[]",
        "null",
        '{"rank": 0}',
        json.dumps(GOOD | {"time": "soon"}),
        json.dumps(GOOD | {"what": {"a": 1}}),
        json.dumps(GOOD | {"exit_code": 10**30, "surprise": 1}),
    ],
)
def test_what_is_no_report_of_a_rank_is_passed_over(tmp_path: Path, text: str) -> None:
    write_failure(tmp_path, Failure(**(GOOD | {"rank": 1})))
    (tmp_path / "failure-rank-00000.json").write_text(text)
    os.mkfifo(tmp_path / "failure-rank-00002.json")
    assert [one.rank for one in read_failures(tmp_path)] == [1]


def test_on_a_full_disk_the_report_goes_to_the_private_folder_alone(tmp_path: Path, monkeypatch) -> None:
    private, logs = tmp_path / "private", tmp_path / "file" / "logs"
    private.mkdir(mode=0o700)
    (tmp_path / "file").touch()  # no folder can be made below it
    monkeypatch.setenv(rendezvous.PRIVATE, str(private))
    write_failure(logs, Failure(**GOOD))
    assert [one.rank for one in read_failures(logs, private)] == [0]


def test_a_port_that_is_taken_is_named_with_what_to_do(monkeypatch) -> None:
    monkeypatch.delenv(rendezvous.PRIVATE, raising=False)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with socket.socket() as other:
        other.bind((rendezvous.ADDRESS, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"rank 0 cannot listen at port {port}: Address already in use") as refused:
            rendezvous.open_store(DistributedEnv(0, 2, 0, 2, "srun", rendezvous.ADDRESS, port), MINUTE)
    assert refused.value.where == "MASTER_PORT" and "export another MASTER_PORT" in refused.value.remedy


def _ranks(*ranks: int, port: int, size: int = 2) -> list[Any]:
    """What each rank has of `open_store`: its store, or the error."""

    def come(rank: int) -> Any:
        try:
            return rendezvous.open_store(
                DistributedEnv(rank, size, rank, size, "srun", rendezvous.ADDRESS, port), MINUTE
            )
        except UserError as error:
            return error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(come, ranks))


@pytest.fixture
def port(monkeypatch) -> int:
    """A free one, for ranks that no supervising process started; whoever is there has two seconds to greet."""
    monkeypatch.delenv(rendezvous.PRIVATE, raising=False)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(rendezvous, "GREETING", timedelta(seconds=2))
    with socket.socket() as probe:
        probe.bind((rendezvous.ADDRESS, 0))
        return probe.getsockname()[1]


def test_ranks_meet_at_the_port_in_any_order(port: int) -> None:
    second, first = _ranks(1, 0, port=port)
    first.set("key", "value")
    assert second.get("key") == b"value" and second.timeout == MINUTE


def test_a_rank_does_not_wait_at_the_port_of_a_service_that_says_nothing(port: int) -> None:
    with socket.create_server((rendezvous.ADDRESS, port)):
        [refused] = _ranks(1, port=port)
    assert f"what listens at port {port} is not rank 0 of this launch" in str(refused)


def test_a_rank_does_not_join_the_store_of_another_launch(port: int) -> None:
    earlier = _ranks(0, 1, port=port)
    assert all(isinstance(one, dist.TCPStore) for one in earlier)
    same_size, other_size = _ranks(1, port=port), _ranks(2, port=port, size=3)
    assert all("is not rank 0 of this launch" in str(one) for one in same_size + other_size)


def test_a_rank_does_not_join_a_store_that_torch_opened(port: int) -> None:
    store = dist.TCPStore(rendezvous.ADDRESS, port, 2, True, MINUTE, wait_for_workers=False)
    assert "is not rank 0 of this launch" in str(_ranks(1, port=port)[0])
    del store
