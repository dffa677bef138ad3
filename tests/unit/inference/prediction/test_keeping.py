"""Proves that the output has each row once and in order after any crash, that few windows are open at a time, and that rows
which were split are merged. The ranks are played by this test.
"""

from __future__ import annotations

import errno
import json
from multiprocessing import Pipe

import pytest

from finetune.errors import Halted
from finetune.inference.answering import PIECE, Answered, Chunk, RowError
from finetune.inference.prediction.feeder import Feeder
from finetune.inference.prediction.keeper import OPEN_WINDOWS, Keeper
from finetune.inference.prediction.parts import Parts, publish
from finetune.inference.prediction.spool import Spool
from finetune.inference.prediction.state import State
from finetune.tasks.batch import Answer
from tests import asking


class Ranks:
    """Stands for the connection to rank 0: answers the chunks of each window when the Keeper listens."""

    def __init__(self, output, recorder=None, *, stops_after=10**9):
        self.parts, self.recorder = Parts(output), recorder or asking.recorder()
        self.answerer, self.waiting, self.replies, self.sent = asking.AddingAnswerer(), [], [], []
        self.most_open, self.stops_after = 0, stops_after

    def send(self, message):
        self.sent.append(message)
        if message[0] == "window":
            self.waiting += [message[1]] if message[1].todo else []
            self.most_open = max(self.most_open, len(list(self.parts.folder.glob("window-*"))))

    def poll(self, seconds):
        if seconds and not self.replies and self.waiting:
            self.answer(self.waiting.pop(0))
        return bool(self.replies)

    def recv(self):
        return self.replies.pop(0)

    def answer(self, window):
        spool = Spool(self.parts.window(window.number))
        for chunk in reversed(window.todo):
            self.stops_after -= 1
            if self.stops_after < 0:
                raise KeyboardInterrupt
            examples = spool.read(chunk)
            loaded = self.recorder.splitter.load(examples)
            ((_, outcomes),) = self.answerer.run([Chunk((window.number, chunk), loaded)])
            publish(
                self.parts.answers((window.number, chunk)),
                self.recorder.write(spool.chunks[chunk].digest, examples, outcomes),
            )
        self.replies.append(("done", window.number, len(window.todo)))


def keep(rows, output, ranks=None, **options):
    ranks = ranks or Ranks(output)
    Keeper(*asking.make(asking.asked(rows, **options), output), ranks, None).run()
    return ranks


ROWS = [{"text": "abc"[: 1 + number % 3] * (1 + number % 7)} for number in range(333)]


def lines(output):
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_few_windows_are_open_at_a_time(tmp_path):
    output = tmp_path / "out.jsonl"
    ranks = keep(ROWS, output, window_rows=20)
    assert [line["row"] for line in lines(output)] == list(range(333))
    assert ranks.most_open == OPEN_WINDOWS
    assert [kind for kind, *_ in ranks.sent].count("window") == 17
    assert State.read(Parts(output).state).finished


@pytest.mark.parametrize("chunks", [0, 1, 7, 40])
def test_the_same_command_goes_on_after_a_kill(tmp_path, chunks):
    """What was answered before is not answered again."""
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    needed = keep(ROWS, whole).answerer.chunks
    killed = Ranks(output, stops_after=chunks)
    with pytest.raises(KeyboardInterrupt):
        keep(ROWS, output, killed)
    with output.open("a") as file:
        file.write('{"row": 1234, "su')  # of a window that was being written
    again = keep(ROWS, output)
    assert output.read_bytes() == whole.read_bytes()
    assert killed.answerer.chunks == chunks and again.answerer.chunks == needed - chunks


def test_answers_to_other_examples_are_not_used(tmp_path):
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        keep(ROWS, output, Ranks(output, stops_after=5))
    other = [{"text": "z" + row["text"][1:]} for row in ROWS]
    keep(other, output)
    assert lines(output)[:50] == [{"row": number, "sum": sum(map(ord, other[number]["text"]))} for number in range(50)]


def test_answers_that_are_not_as_they_were_written_are_answered_again(tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    keep(ROWS, whole)
    with pytest.raises(KeyboardInterrupt):
        keep(ROWS, output, Ranks(output, stops_after=5))
    files = sorted(Parts(output).window(0).glob("*.answers"))
    contents = [path.read_bytes() for path in files]
    assert len(files) == 5
    damaged = [contents[1], contents[0], contents[2][:-7], contents[3].replace(b'"sum": ', b'"sum": 1'), b"["]
    for path, content in zip(files, damaged, strict=True):
        path.write_bytes(content)
    again = keep(ROWS, output)
    assert output.read_bytes() == whole.read_bytes()
    assert ("note", "3 chunks of an earlier start had damaged answers: answered again") in again.sent


def test_a_full_disk_leaves_what_is_done(tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    made = asking.make(asking.asked(ROWS), output)
    append, calls, first = made[1].output.append, [], Ranks(output)

    def fill(records):
        calls.append(1)
        if len(calls) == 3:
            append(records[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(records)

    monkeypatch.setattr(made[1].output, "append", fill)
    with pytest.raises(Halted, match=r"out.jsonl: cannot write: No space left on device") as ended:
        Keeper(*made, first, None).run()
    assert "same command" in ended.value.remedy
    again = keep(ROWS, output)
    assert [line["row"] for line in lines(output)] == list(range(333))
    needed = keep(ROWS, tmp_path / "whole.jsonl").answerer.chunks
    assert again.answerer.chunks + first.answerer.chunks == needed


def test_targets_are_used_where_they_can_be(tmp_path):
    rows = [
        {"text": "ab", "label": 1},
        {"text": "abc", "label": "odd"},
        {"text": "a", "label": None},
        {"text": "b", "label": 0},
    ]
    ranks = keep(rows, tmp_path / "out.jsonl")
    assert [line["sum"] for line in lines(tmp_path / "out.jsonl")] == [195, 294, 97, 98]
    scored = lines(Parts(tmp_path / "out.jsonl").scored)
    assert [(line["row"], line["score"]["reference"]) for line in scored] == [
        (0, {"reference": 1}),
        (3, {"reference": 0}),
    ]
    notes = [message[1] for message in ranks.sent if message[0] == "note"]
    assert notes == ["1 row: answered without its target, which cannot be used: no such class: odd (rows row 1)"]


class Halves:
    """A RowSplitter: a text of several letters is two examples, whose sums are added."""

    def __init__(self):
        self.whole = asking.recorder().splitter

    def split(self, rows, *, with_targets):
        results = []
        for row in rows:
            middle = len(row["text"]) // 2
            texts = [row["text"]] if not middle else [row["text"][:middle], row["text"][middle:]]
            parts = self.whole.split([{"text": text} for text in texts], with_targets=False)
            bad = [part for part in parts if not isinstance(part, list)]
            results.append(bad[0] if bad else [part[0] for part in parts])
            if not bad and middle:
                for part, place in zip(results[-1], ("left", "right"), strict=True):
                    part[PIECE] = {"place": place}
        return results

    def load(self, examples):
        return list(examples)

    def merge(self, row, parts):
        assert [part.piece["place"] for part in parts] == ["left", "right"]
        errors = [part.outcome for part in parts if isinstance(part.outcome, RowError)]
        return (
            errors[0] if errors else Answered(Answer(row, {"sum": sum(p.outcome.answer.values["sum"] for p in parts)}))
        )


def test_a_row_may_be_several_examples(tmp_path):
    recorder, output = asking.recorder(), tmp_path / "out.jsonl"
    object.__setattr__(recorder, "splitter", Halves())
    asked = asking.asked([*ROWS, {"text": "failsx"}, {"text": "xxxxxfails"}])
    object.__setattr__(asked, "splitter", Halves())
    feeder, collector = asking.make(asked, output)
    collector.recorder = recorder
    Keeper(feeder, collector, Ranks(output, recorder), None).run()
    found = lines(output)
    assert found[:333] == [{"row": number, "sum": sum(map(ord, row["text"]))} for number, row in enumerate(ROWS)]
    assert found[333]["sum"] == sum(map(ord, "failsx")) and found[334]["error"]["kind"] == "failed"


def test_the_keeper_ends_with_the_other_end(tmp_path):
    ours, theirs = Pipe()
    ours.close()
    with pytest.raises((EOFError, OSError)):
        Keeper(*asking.make(asking.asked(ROWS), tmp_path / "out.jsonl"), theirs, None).run()


def test_large_rows_make_small_windows(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.inference.prediction.feeder.WINDOW_BYTES", 100)
    feeder = Feeder(asking.asked([{"text": "x" * 60}] * 7, window_rows=5), Parts(tmp_path / "out.jsonl"))
    assert [window.rows for window in feeder.windows()] == [2, 2, 2, 1]
