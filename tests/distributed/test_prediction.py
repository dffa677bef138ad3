"""Proves that ranks answer every row once and in order, whatever their number and speed, and go on after a rank has failed."""

from __future__ import annotations

import json
import random
import time
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

import pytest

from finetune.data.sources.streams import MemoryStream
from finetune.distributed.failure import PeerFailed
from finetune.distributed.session import Session
from finetune.errors import FinetuneError, TrainingFailed, UserError
from finetune.inference.prediction.board import GroupBoard
from finetune.inference.prediction.heartbeat import Listening
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.rank_loop import RankLoop, total_figures
from finetune.inference.prediction.relay import Relay, announce_figures, gather_figures
from finetune.tasks.text_classification.card import CARD
from tests import asking
from tests.ranks import RankError

LETTERS = "abcdefghij"


def texts(count, seed=0):
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=min(30, int(draw.lognormvariate(1.5, 0.8)) + 1))) for _ in range(count)]


def predict(rows, output, *, seconds=(0.0,), dies_at="", died=(), fails=(), max_errors=None):
    """One rank. seconds: per unit of cost, by rank; the last counts for all further ranks."""
    session = Session.open(None, precision="fp32", cpu=True)
    slowness = seconds[min(session.rank, len(seconds) - 1)]
    answerer = asking.AddingAnswerer(seconds=slowness, dies_at=dies_at if session.rank in died else "")
    answerer.fails = session.rank in fails
    answerer.waits = answerer.fails and len(fails) < session.world_size
    relay = connection = None
    board = GroupBoard(session)
    if session.is_main:
        connection = asking.keep_in_thread(asking.asked(rows, keep=("name",)), output, max_errors)
        relay = Relay(board, Parts(output), connection, lambda state, share: None, lambda line: None)
    recorder = asking.recorder()
    loop = RankLoop(session, board, Parts(output), answerer, recorder.splitter, recorder, asking.cost)
    try:
        try:
            own = loop.run()
        except PeerFailed:
            if relay:
                relay.wait()  # raises what it was
            raise
        announce_figures(board, own.to_dict())
        state = relay.wait() if relay else None
        return own, state, gather_figures(board, lambda: range(session.world_size)) if relay else []
    finally:
        if connection is not None:
            connection.close()  # ends the thread at its other end, and the relay's
            with suppress(FinetuneError):
                relay.wait()  # or it would announce that in the store of the next test's ranks


@pytest.fixture
def rows():
    rows = [{"text": text, "name": f"n{number}"} for number, text in enumerate(texts(230))]
    for number, text in ((3, "bad"), (60, "raises"), (61, "fails"), (229, "bad")):
        rows[number]["text"] = text
    rows[100].pop("text")
    return rows


def expected(rows):
    errors = {"bad": ("bad_row", "it is bad"), "raises": ("bad_row", "ZeroDivisionError: in encode")}
    errors |= {"fails": ("failed", "it failed")}
    for number, row in enumerate(rows):
        text = row.get("text")
        if text is None or text in errors:
            kind, message = errors.get(text, ("bad_row", ""))
            yield {"row": number, "error": {"kind": kind, "message": message}, "name": row["name"]}
        else:
            yield {"row": number, "sum": sum(map(ord, text)), "name": row["name"]}


def test_every_row_once_in_order_on_any_number_of_ranks(ranks, rows, tmp_path):
    written = []
    for count in (1, 2, 3):
        output = tmp_path / f"{count}.jsonl"
        results = ranks.run(count, predict, rows, output)
        written.append(output.read_bytes())
        assert sum(own.rows for own, _, _ in results) == 230 - 4  # those that cannot be encoded reach no rank
        state = results[0][1]
        assert (state.rows, state.windows, state.finished) == (230, 5, True)
        assert state.errors == {"bad_row": 4, "failed": 1}
        assert [figures["rank"] for figures in results[0][2]] == list(range(count))
        assert not list(tmp_path.glob("*.parts/window-*"))
    assert written[0] == written[1] == written[2]
    lines = [json.loads(line) for line in written[0].decode().splitlines()]
    lines[100]["error"]["message"] = ""  # of the reader, which names the column
    assert lines == list(expected(rows))


def test_a_fast_rank_takes_more(ranks, tmp_path):
    rows = [{"text": text, "name": ""} for text in texts(300)]
    started = time.monotonic()
    results = ranks.run(2, predict, rows, tmp_path / "out.jsonl", seconds=(0.0005, 0.002))
    assert time.monotonic() - started < 20
    fast, slow = (own for own, _, _ in results)
    assert 2 < fast.cost / slow.cost < 8
    totals = total_figures(results[0][2])
    assert 0 <= totals["idle_share"] < 0.5 and 0 <= totals["padding_share"] < 0.3


def test_data_without_rows_is_an_empty_output(ranks, tmp_path):
    ((_, state, _), _) = ranks.run(2, predict, [], tmp_path / "out.jsonl")
    assert state.finished and (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_rank_without_work_is_not_waited_for(ranks, tmp_path):
    results = ranks.run(3, predict, [{"text": "a", "name": ""}], tmp_path / "out.jsonl")
    assert sorted(own.rows for own, _, _ in results) == [0, 0, 1]


def test_a_row_that_breaks_the_device_ends_only_itself(ranks, rows, tmp_path):
    """The first start dies at its chunk, the second at the row alone, the third answers all others. It is a row of the
    first window: the last one is read only once that is complete.
    """
    output, plain = tmp_path / "out.jsonl", tmp_path / "plain.jsonl"
    ranks.run(2, predict, rows, plain)
    poison = rows[10]["text"] = "poison"
    for start in range(2):
        with pytest.raises(RankError, match="device-side assert"):
            ranks.run(2, predict, rows, output, dies_at=poison, died=(0, 1))
        assert len(list(tmp_path.glob("out.jsonl.parts/*/*.failed"))) >= 1, start
    assert len(list(tmp_path.glob("out.jsonl.parts/*/*.lost"))) == 1
    ranks.run(2, predict, rows, output, dies_at=poison, died=(0, 1))
    lines, before = output.read_text().splitlines(), plain.read_text().splitlines()
    assert json.loads(lines[10])["error"]["kind"] == "failed"
    assert lines[:10] + lines[11:] == before[:10] + before[11:]


class Growing(MemoryStream):
    """A file that grows while it is read."""

    def rows(self, start=0):
        yield from super().rows(start)
        raise UserError("changed while it was read", where="new.jsonl")


def test_a_model_that_fails_on_every_row_ends_it_and_blames_no_chunk(ranks, tmp_path):
    rows = [{"text": text, "name": "n"} for text in texts(200)]
    with pytest.raises(RankError, match=r"Halted.*failed on all of the first 32 rows.*it failed"):
        ranks.run(2, predict, rows, tmp_path / "out.jsonl", fails=(0, 1))
    assert not list(Parts(tmp_path / "out.jsonl").folder.glob("window-*/*.failed"))


def test_a_rank_that_fails_on_every_row_goes_on_where_another_one_answers(ranks, tmp_path):
    rows = [{"text": text, "name": "n"} for text in texts(400)]
    results = ranks.run(2, predict, rows, tmp_path / "out.jsonl", seconds=(0.0005, 0.001), fails=(1,))
    (own, state, _), (other, _, _) = results
    assert state.rows == 400 and state.errors == {"failed": other.rows}
    assert own.rows and other.rows > 32


def test_an_error_of_the_reader_ends_every_rank(ranks, tmp_path):
    stream = Growing([{"text": text, "name": ""} for text in texts(60)], CARD, keep=("name",))
    with pytest.raises(RankError) as ended:
        ranks.run(2, predict, stream, tmp_path / "out.jsonl")
    assert any(isinstance(cause, UserError) or "reads the data" in str(cause) for cause in ended.value.causes.values())


def test_too_many_errors_end_it_and_a_larger_limit_goes_on(ranks, rows, tmp_path):
    with pytest.raises(RankError, match=r"reads the data failed|too many rows"):
        ranks.run(2, predict, rows, tmp_path / "out.jsonl", max_errors=2)
    state = json.loads((tmp_path / "out.jsonl.parts/state.json").read_text())
    assert 50 <= state["rows"] < 230
    ranks.run(1, predict, rows, tmp_path / "out.jsonl", max_errors=5)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 230


def hear(count_rank_1):
    """Rank 1 is there, but says nothing more: as rank 0 sees a rank that was killed where no launcher ends the others."""
    session = Session.open(None, precision="fp32", cpu=True)
    if session.is_main:
        listening = Listening(session, silence=0.5, every=0.02)
        ours, theirs = Pipe()  # nobody reads or writes, and nobody ends
        relay = Relay(
            GroupBoard(session), Parts(Path("out.jsonl")), ours, lambda state, share: None, lambda line: None, listening
        )
        with pytest.raises(TrainingFailed) as ended:
            relay.wait()
        session.store.count(count_rank_1)
        theirs.close()
        return ended.value.where
    while not session.store.count(count_rank_1, 0):
        time.sleep(0.01)
    return None


def test_a_rank_of_which_nothing_is_heard_ends_the_prediction(ranks):
    assert ranks.run(2, hear, "seen") == ["rank 1", None]
