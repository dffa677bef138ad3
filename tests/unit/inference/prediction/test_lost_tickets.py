"""Proves that the chunks of a replica that died are answered by others, each once, with the bytes of an undisturbed output."""

from __future__ import annotations

import json
import os
import signal
import threading
from functools import partial
from types import SimpleNamespace

import pytest

from finetune.app.workers.prediction_reading import Reading
from finetune.distributed.folder_store import FolderStore
from finetune.distributed.replica_place import ReplicaPlace
from finetune.errors import TrainingFailed
from finetune.inference.prediction.board import END, ReaderBoard, ReplicaBoard, count_chunks, note_death
from finetune.inference.prediction.keeper import start_keeper
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.rank_loop import RankLoop
from finetune.inference.prediction.relay import Relay, announce_figures, gather_figures
from tests import asking

ROWS = [{"text": "abcdefghij"[: 1 + number % 10], "name": f"n{number}"} for number in range(230)]


class Killed(BaseException):
    """In place of SIGKILL: no handler of errors sees it."""


class Place:
    """An output that a reader in this process writes, and replicas of one rank that are called one after the other."""

    def __init__(self, folder):
        (folder / "store").mkdir(parents=True)
        self.folder, self.parts = folder, Parts(folder / "out.jsonl")
        self.store = FolderStore(folder / "store")
        self.board = ReaderBoard(FolderStore(folder / "store"))
        connection = asking.keep_in_thread(asking.asked(ROWS, keep=("name",)), self.parts.output)
        self.relay = Relay(self.board, self.parts, connection, lambda *state: None, lambda line: None)

    def replica(self, number, attempt=0, answerer=None, kill_at_finish=0):
        """Answer until all is answered. kill_at_finish: the how-manieth chunk it publishes, without saying so."""
        place = ReplicaPlace(number, 1, 2, attempt, str(self.folder / "store"))
        board, finished = ReplicaBoard(FolderStore(self.folder / "store"), place, number), []

        def finish(chunk):
            finished.append(chunk)
            if len(finished) == kill_at_finish:
                raise Killed
            ReplicaBoard.finish(board, chunk)

        board.finish = finish
        session, recorder = SimpleNamespace(is_replica_lead=True, replica_size=1, replica=0), asking.recorder()
        answerer = answerer or asking.AddingAnswerer()
        loop = RankLoop(session, board, self.parts, answerer, recorder.splitter, recorder, asking.cost)
        announce_figures(board, loop.run().to_dict())

    def finish(self):
        state = self.relay.wait()
        assert (state.rows, state.errors) == (230, {}) and self.store.announced(END) is not None
        return self.parts.output.read_bytes()


def test_how_the_process_that_reads_and_writes_ended_is_told(tmp_path):
    """SIGTERM is somebody's wish, not a lack of memory; and a process that ends without a word has not been killed."""
    told = []
    for number in (signal.SIGTERM, signal.SIGKILL, 0):
        process, connection = start_keeper(partial(_end, number), None, apart=True)
        board = ReaderBoard(FolderStore(tmp_path))
        reading = Reading(
            SimpleNamespace(parts=Parts(tmp_path / "o.jsonl")), process, connection, None, 0, SimpleNamespace(show=None)
        )
        with pytest.raises(TrainingFailed, match="reads the data and writes") as failed:
            reading.relay(board).wait()
        told.append(failed.value.what.partition("the output ")[2].partition(";")[0])
    assert told == ["was killed by SIGTERM", "was killed by SIGKILL", "ended, and did not say why"]


def _end(number):
    """In the process: in place of its work."""
    os.kill(os.getpid(), number) if number else os._exit(0)


class Dying(asking.AddingAnswerer):
    """Dies while it answers its third chunk."""

    def run(self, chunks):
        def counted():
            for number, chunk in enumerate(chunk for chunk in chunks if chunk is not None):
                if number == 2:
                    raise Killed
                yield chunk

        return super().run(counted())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("whole"))
    place.replica(0)
    return place.finish()


def test_a_chunk_in_work_is_given_out_again(tmp_path, whole):
    """The other replica waits at the end for what the first one holds, and answers it once that is known to be dead."""
    place = Place(tmp_path)
    with pytest.raises(Killed):
        place.replica(1, answerer=Dying())
    assert count_chunks(place.store, 1, 0) == (3, 2)
    other = threading.Thread(target=place.replica, args=(0,))
    other.start()
    other.join(0.5)
    assert other.is_alive() and place.store.announced(END) is None
    note_death(place.store, 1, 0)
    assert place.finish() == whole
    other.join()
    (figures,) = gather_figures(place.board, lambda: [0])
    assert figures["rows"] < 230 and count_chunks(place.store, 0, 0)[0] == figures["chunks"]


def test_published_answers_are_not_asked_for_again(tmp_path, whole):
    place = Place(tmp_path)
    with pytest.raises(Killed):
        place.replica(1, kill_at_finish=2)
    note_death(place.store, 1, 0)
    place.replica(1, attempt=1)
    assert place.finish() == whole
    taken, answered = count_chunks(place.store, 1, 0)
    chunks = sum(count_chunks(place.store, 1, attempt)[1] for attempt in (0, 1))
    assert answered == 1 and taken >= 2 and len(place.store.entries("predict/done")) == chunks + 1


def test_a_chunk_that_is_blamed_is_answered_row_by_row(tmp_path, whole):
    place = Place(tmp_path)
    poison = next(row["text"] for row in ROWS if len(row["text"]) == 10)
    with pytest.raises(RuntimeError, match="device-side assert"):
        place.replica(1, answerer=asking.AddingAnswerer(dies_at=poison))
    (blamed,) = place.parts.folder.glob("window-*/*.failed")
    note_death(place.store, 1, 0)
    place.replica(0)
    assert place.finish() == whole and not blamed.exists()
    announced = [json.loads(path.read_text()) for path in (tmp_path / "store").glob("predict.window.*")]
    assert [failed for _, _, _, failed in announced if failed] == [[int(blamed.stem)]]
