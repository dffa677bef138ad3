"""`finetune.load`: a model to be asked from Python, in one process, with the answers of `finetune predict`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.app.argument_names import in_arguments, speaking_of_arguments
from finetune.app.asked_model import AskedModel, open_model
from finetune.app.asked_plan import Precision, Quantization
from finetune.data.prepare.notices import Notices
from finetune.data.sources.streams import MemoryStream
from finetune.errors import UserError
from finetune.inference.answering import PIECE, Answerer, Chunk, Outcome, Part, RowError, RowSplitter
from finetune.inference.generation.answerer import GenerationAnswerer
from finetune.inference.pieces.counts import CutRows
from finetune.inference.pieces.loading import LoadingAnswerer
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.splitter import make_splitter
from finetune.inference.prediction.feeder import Asked, cut_window, encode_window, read_windows
from finetune.inference.recording import ERROR, ROW, record_fields, record_outcome
from finetune.models.kernel_choices import kernels_chosen
from finetune.models.placement import Placement
from finetune.tasks.batch import RecordOptions

Record = dict[str, Any]


class LoadedModel:
    """A model in this process. `predict` answers rows; called with a batch of columns, it serves `Dataset.map`.

    task: such as "text_classification". labels: names of the classes, [] for a task without. name: of the run and its
    checkpoint, or of the model. notes: what was found out while it was opened, such as the task of a configuration.
    """

    def __init__(self, asked: AskedModel, *, notes: Sequence[str] = (), reload: tuple[Any, ...] = ()) -> None:
        """reload: arguments of `load`, with which another process opens the same model."""
        self.asked, self.notes = asked, [*notes, *asked.notes]
        self.task, self.name = asked.task.card.name, asked.name
        self.labels = asked.artifacts.labels
        self._reload = reload

    def __repr__(self) -> str:
        return f"LoadedModel({self.name!r}, task={self.task!r}, device={str(self.asked.device)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Named by its source and digest: `Dataset.map` recognizes it again, and its workers load their own."""
        if not self._reload:
            raise TypeError("a model that was not opened by finetune.load cannot be pickled")
        return _load_again, (*self._reload, self.asked.digest)

    def predict(
        self,
        rows: Any,
        *,
        columns: Mapping[str, str] | None = None,
        keep: Sequence[str] = (),
        top_k: int = 1,
        threshold: float | None = None,
        logprobs: bool = False,
        tile: int | None = None,
        overlap: float | None = None,
        whole_image: bool | None = None,
        max_boxes: int | None = None,
        block: int | None = None,
        stride: int | None = None,
        merge: str | None = None,
        **generation: Any,
    ) -> list[Record]:
        """One record per row, in order: {"row": 0, "label": "good", "score": 0.98}, or {"row": 0, "error": {...}}.

        rows: a list of dicts, texts or PIL images, a datasets.Dataset, a pandas.DataFrame; or one text, dict or image. A
        text is what a line of a text file is to `finetune predict`: the text, source or prompt, the path of an image.
        columns: role -> name of the column, where they differ, such as {"text": "review"}. keep: columns that stand beside
        the answers. top_k, threshold, logprobs: see RecordOptions. tile to merge: how large images and long texts are cut,
        see PieceOptions. generation: of tasks that write text: new_tokens, temperature, top_p, top_k_tokens, seed and the like,
        see GenerationSettings.
        What was changed in a row to be usable is a warning. Raises: UserError for columns that are missing.
        """
        pieces = PieceOptions(tile, overlap, whole_image, max_boxes, block, stride, merge)
        options = RecordOptions(top_k=top_k, threshold=threshold, logprobs=logprobs)
        with speaking_of_arguments(), kernels_chosen(self.asked.plan.precision):
            return self._predict(rows, columns, keep, options, pieces, generation)

    def _predict(
        self,
        rows: Any,
        columns: Mapping[str, str] | None,
        keep: Sequence[str],
        options: RecordOptions,
        pieces: PieceOptions,
        generation: dict[str, Any],
    ) -> list[Record]:
        record_fields(self.asked.task, self.asked.artifacts, options)  # refuses options that do not apply
        splitter = make_splitter(self.asked.task, self.asked.artifacts, pieces)
        if "top_k_tokens" in generation:
            generation["top_k"] = generation.pop("top_k_tokens")
        listed = self._as_rows(rows)
        if not len(listed):
            return []
        if self.asked.writes_text:
            generation["logprobs"] = options.logprobs
        with _Answers(self.asked, splitter, generation) as answers:
            return answers.records(MemoryStream(listed, self.asked.task.card, columns=columns, keep=keep), options)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """{"text": ["a", "b"]} -> {"label": [...], "score": [...], "error": ["", ""]}, for Dataset.map(batched=True).

        error: why a row has no answer, "" for one that has; its other fields are then None.
        """
        names = list(batch)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*(batch[name] for name in names), strict=True)]
        records = self.predict(rows)
        fields = [name for name in record_fields(self.asked.task, self.asked.artifacts, RecordOptions()) if name != ROW]
        found = {name: [record.get(name) for record in records] for name in fields}
        found[ERROR] = ["" if error is None else f"{error['kind']}: {error['message']}" for error in found[ERROR]]
        return found

    def _as_rows(self, rows: Any) -> Sequence[Mapping[str, Any]]:
        if isinstance(rows, (str, Mapping, Image.Image)):
            rows = [rows]
        elif hasattr(rows, "to_dict") and hasattr(rows, "iloc"):
            rows = rows.to_dict("records")
        elif not isinstance(rows, Sequence) and not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__")):
            if not isinstance(rows, Iterable):
                raise UserError(
                    f"rows are {type(rows).__name__}, which holds no rows",
                    remedy="Give a list of dicts, texts or images, or a datasets.Dataset.",
                )
            rows = list(rows)
        return _Rows(rows, self._plain_role())

    def _plain_role(self) -> str:
        """The role of a row that is a text or an image by itself; "" if there is none."""
        return self.asked.task.card.rows.role_of_lines(self.asked.artifacts.options)


class _Rows(Sequence[Mapping[str, Any]]):
    """Rows as mappings; a text or image by itself under `role`."""

    def __init__(self, rows: Any, role: str) -> None:
        self.rows, self.role = rows, role

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self.rows):
            raise IndexError(index)
        row = self.rows[index]
        if isinstance(row, Mapping):
            return row
        if isinstance(row, (str, Image.Image)) and self.role:
            return {self.role: row}
        raise UserError(
            f"row {index} is {type(row).__name__}, not a dict of columns",
            remedy="Give dicts such as {'prompt': ..., 'chosen': ...}." if not self.role else "",
        )


class _Answers:
    """Answers streams of rows with one answerer, which is closed at the end."""

    def __init__(self, asked: AskedModel, splitter: RowSplitter, generation: Mapping[str, Any]) -> None:
        if generation and not asked.writes_text:
            raise UserError(
                f"{', '.join(generation)}: a model of the task {asked.task.card.name} writes no text",
                remedy="Leave it out.",
            )
        self.asked = asked
        self.answerer: Answerer = asked.answerer(**generation)
        self.splitter = splitter

    def __enter__(self) -> _Answers:
        return self

    def __exit__(self, *exception: object) -> None:
        if isinstance(self.answerer, GenerationAnswerer):
            self.answerer.generator.close()

    def records(self, stream: MemoryStream, options: RecordOptions) -> list[Record]:
        """The records of all rows, in their order."""
        asked = Asked(stream, self.asked.task.card, self.splitter, self.answerer.cost, self.answerer.budget)
        notices, cut, records = Notices(), CutRows(), []
        for rows, last in read_windows(asked):
            pieces = encode_window(asked, rows, notices)
            cut.add_all(pieces)
            outcomes: dict[int, Outcome] = {
                row.number: item for row, item in zip(rows, pieces, strict=True) if isinstance(item, RowError)
            }
            outcomes.update(self._answer(cut_window(asked, pieces, last=last)))
            records += [
                record_outcome(
                    self.asked.task, self.asked.artifacts, row.number, outcomes[row.number], options, row.kept
                )
                for row in rows
            ]
        for line in (*stream.notes, *notices.lines(), *cut.report()):
            warnings.warn(in_arguments(line), stacklevel=5)
        return records

    def _answer(self, cut: Sequence[Sequence[dict[str, Any]]]) -> dict[int, Outcome]:
        """Row -> outcome, of all examples of a window."""
        outcomes: dict[int, Outcome] = {}
        parts: dict[int, list[Part]] = {}

        def take(example: Mapping[str, Any], outcome: Outcome) -> None:
            if PIECE in example:
                parts.setdefault(int(example["id"]), []).append(Part(example[PIECE], outcome))
            else:
                outcomes[int(example["id"])] = outcome

        def chunks() -> Iterator[Chunk]:
            for number, examples in enumerate(cut):
                yield Chunk((0, number), examples)

        for chunk, found in LoadingAnswerer(self.answerer, self.splitter).run(chunks()):
            for example, outcome in zip(chunk.examples, found, strict=True):
                take(example, outcome)
        for row, some in parts.items():
            outcomes[row] = self.splitter.merge(row, sorted(some, key=lambda part: int(part.piece["index"])))
        return outcomes


def load(
    source: str | Path,
    *,
    checkpoint: str = "best",
    task: str = "",
    precision: Precision | None = None,
    quantization: Quantization | None = None,
    device: str | None = None,
    layers: Sequence[int] = (),
    memory: Mapping[int | str, int] | None = None,
    offload: str | Path | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """See finetune.load."""
    notes: list[str] = []
    placement = None
    if layers or memory:
        placement = Placement(tuple(layers), dict(memory or {}), None if offload is None else Path(offload))
    choices: dict[str, Any] = {
        "checkpoint": checkpoint,
        "task": task,
        "precision": precision,
        "quantization": quantization,
        "device": device,
        "placement": placement,
        "trust_remote_code": trust_remote_code,
    }
    with speaking_of_arguments():
        asked = open_model(source, notify=notes.append, **choices)
    loaded = LoadedModel(asked, notes=notes, reload=(str(source), choices))
    for note in loaded.notes:
        print(f"finetune: {in_arguments(note)}", file=sys.stderr)
    return loaded


def _load_again(source: str, choices: dict[str, Any], digest: str) -> LoadedModel:
    """In another process. Raises: UserError if the model is another one by now."""
    notes: list[str] = []
    loaded = LoadedModel(open_model(source, notify=notes.append, **choices), notes=notes, reload=(source, choices))
    if loaded.asked.digest != digest:
        raise UserError("the model has changed since it was loaded", where=source, remedy="Load it again.")
    return loaded
