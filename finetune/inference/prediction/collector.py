"""Finished windows go to the output in the order of the rows, each row once; what was written is known after any crash."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from finetune.errors import Halted
from finetune.inference.answering import PIECE
from finetune.inference.prediction.answer_files import read_answers
from finetune.inference.prediction.deaths import forget_whereabouts
from finetune.inference.prediction.feeder import FedWindow
from finetune.inference.prediction.outcomes import Recorder
from finetune.inference.prediction.parts import Parts, cut_back, disk_errors
from finetune.inference.prediction.state import State

Line = dict[str, Any]
MAY_BE_EMPTY = ("boxes", "labels", "text")  # fields of answers in which nothing may be found or written
MAX_REASON = 300  # characters of the first error of a kind that the end of the command shows


class Output(Protocol):
    """The user's file while it grows."""

    def resume(self, position: Any) -> None:
        """Go on behind `position`, as `append` returned it; None: at the beginning. What is behind it is removed.

        Raises: UserError if what was written is not there, or not as it was written.
        """
        ...

    def check_finished(self, position: Any, rows: int) -> None:
        """Raises: UserError if the file is not the one that was finished with so many rows behind `position`."""
        ...

    def append(self, records: Sequence[Mapping[str, Any]]) -> Any:
        """Write records, on the disk when it returns; the position behind them, a JSON value."""
        ...

    def finish(self) -> None:
        """All records are written."""
        ...


class Collector:
    """Appends windows. Make it after the state of an earlier start is known to be of the same command."""

    def __init__(self, parts: Parts, output: Output, recorder: Recorder, state: State) -> None:
        self.parts, self.output, self.recorder, self.state = parts, output, recorder, state
        with disk_errors(parts.output):
            output.resume(state.position)
        self.scored = _Scored(parts.scored, state.scored_bytes)
        for number in parts.windows():
            if number < state.windows:  # a crash came between the state and the removal
                parts.remove_window(number)

    def collect(self, window: FedWindow) -> None:
        """Append a window whose chunks are all answered, publish the state, and remove the window's folder.

        Raises: Halted for a full disk, or if a row is missing or twice there.
        """
        assert window.number == self.state.windows, "windows are collected in order"
        try:
            records, scored, nothing = self._read(window)
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # edited by somebody, with digests that fit
            what = f"{type(error).__name__}: {error}"
            raise _broken(self.parts.window(window.number), what) from error
        self._advance(records, scored, nothing)
        self.parts.remove_window(window.number)

    def _read(self, window: FedWindow) -> tuple[list[Line], list[Line], list[tuple[str, int]]]:
        """(records of a window, what the metrics need of those with targets, (field, row) of answers that hold nothing)."""
        folder = self.parts.window(window.number)
        found = self._lines(window)
        records, scored, nothing = [], [], list[tuple[str, int]]()
        with (folder / "rows.jsonl").open(encoding="utf-8") as rows:
            for text in rows:
                row = json.loads(text)
                number = row["row"]
                if "error" in row:
                    record = {"row": number, "error": row["error"]}
                elif number in found:
                    line = found.pop(number)
                    record = {**line["record"]}
                    _kinds([record])
                    nothing += [(name, number) for name in MAY_BE_EMPTY if name in record and not record[name]]
                    if "scored" in line:
                        scored.append({"row": number, **line["scored"]})
                else:
                    raise _broken(folder, f"row {number} has no answer")
                records.append({**record, **row.get("kept", {})})
        if found or len(records) != window.rows:
            raise _broken(folder, f"{len(records)} of {window.rows} rows, and {len(found)} unknown ones")
        return records, scored, nothing

    def _lines(self, window: FedWindow) -> dict[int, Line]:
        """Row -> its line. Parts of a row come from several chunks."""
        whole: dict[int, Line] = {}
        split: dict[int, list[Line]] = {}
        for chunk in range(window.chunks):
            path = self.parts.answers((window.number, chunk))
            for line in read_answers(path):
                number = line["row"]
                if PIECE in line:
                    split.setdefault(number, []).append(line)
                elif whole.setdefault(number, line) is not line:
                    raise _broken(path, f"row {number} is answered twice")
        for number, lines in split.items():
            places = sorted(line[PIECE]["index"] for line in lines)
            if places != list(range(lines[0][PIECE]["count"])):
                raise _broken(self.parts.window(window.number), f"row {number} has parts {places}")
            whole[number] = self.recorder.merge(number, lines)
        return whole

    def _advance(self, records: Sequence[Line], scored: Sequence[Line], nothing: Sequence[tuple[str, int]]) -> None:
        state = self.state
        with disk_errors(self.parts.output):
            state.position = self.output.append(records)
        state.scored_bytes = self.scored.append(scored)
        errors = Counter(state.errors)
        errors.update(_kinds(records))
        state.errors = dict(sorted(errors.items()))
        first = {record["error"]["kind"]: record for record in reversed(records) if "error" in record}
        reasons = {kind: str(record["error"].get("message", ""))[:MAX_REASON] for kind, record in first.items()}
        state.first_errors = {**{kind: int(record["row"]) for kind, record in first.items()}, **state.first_errors}
        state.first_reasons = {**reasons, **state.first_reasons}
        state.nothing = dict(sorted((Counter(state.nothing) + Counter(name for name, _ in nothing)).items()))
        state.first_nothing = {**dict(reversed(nothing)), **state.first_nothing}
        state.windows, state.rows, state.scored = (
            state.windows + 1,
            state.rows + len(records),
            state.scored + len(scored),
        )
        state.save(self.parts.state)

    def finish(self) -> None:
        """All windows are collected."""
        with disk_errors(self.parts.output):
            self.output.finish()
        forget_whereabouts(self.parts)
        self.state.finished = True
        self.state.save(self.parts.state)


class _Scored:
    """scored.jsonl, which grows beside the output."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        with disk_errors(path):
            cut_back(path, size)

    def append(self, lines: Sequence[Line]) -> int:
        """The size of the file behind them."""
        if lines:
            data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            with disk_errors(self.path), self.path.open("ab") as file:
                file.write(data.encode("utf-8", "backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
                self.size = file.tell()
        return self.size


def _kinds(records: Sequence[Line]) -> list[str]:
    """The kinds of the errors among records."""
    return [record["error"]["kind"] for record in records if "error" in record]


def _broken(path: Path, what: str) -> Halted:
    return Halted(
        f"the answers of a window do not fit its rows: {what}",
        where=str(path),
        remedy="Remove this folder and run the same command again: its rows are answered again.",
    )
