"""What follows from a model and the options of `finetune predict`, the same on every rank and at every start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune.app.model_sources import FoundModel
from finetune.app.predict_options import PredictOptions
from finetune.data.sources.asked_columns import ColumnChoice, parse_columns
from finetune.data.sources.read_options import asked_sources
from finetune.data.sources.source_stream import open_stream
from finetune.data.sources.streams import MemoryStream, RowStream
from finetune.errors import EmptyData, UserError
from finetune.inference.answering import RowSplitter
from finetune.inference.embedding import as_embedding, check_encoder
from finetune.inference.example_cost import ExampleCost, chunk_budget
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.splitter import make_splitter
from finetune.inference.prediction.manifest import Manifest
from finetune.inference.prediction.outcomes import Recorder
from finetune.inference.prediction.outputs import read_records
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.pictures import draw_predictions
from finetune.inference.prediction.record_columns import RecordColumns
from finetune.inference.recording import record_fields
from finetune.models.config import load_config
from finetune.models.device import uses_cuda
from finetune.recipe.data import SourceSection
from finetune.tasks import CARDS, load_task
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import RecordOptions
from finetune.tasks.records import Fields
from finetune.tasks.task import Task
from finetune.terminal import print_line


def _cost(task: Task, artifacts: TaskArtifacts, options: PredictOptions) -> ExampleCost:
    cost = ExampleCost.of(task, artifacts)
    return replace(cost, written=options.max_new_tokens) if cost.written and options.max_new_tokens else cost


def _task(found: FoundModel, options: PredictOptions) -> Task:
    """The task as it is asked. Raises: UserError for embeddings of what is no encoder."""
    task = load_task(found.recipe.task)
    if not options.embed:
        return task
    check_encoder(CARDS[found.recipe.task], load_config(found.recipe.model), found.name)
    embedding: Task = as_embedding(task, normalize=options.normalize)
    return embedding


def _generation(task: Task, options: PredictOptions) -> dict[str, Any]:
    """Raises: UserError for settings of generation where no text is written."""
    given = options.generation()
    if hasattr(task, "generate"):
        return {**given, "logprobs": options.logprobs}
    if given:
        names = {"new_tokens": "max-new-tokens", "stops": "stop", "repetition_penalty": "repetition-penalty"}
        first = next(iter(given))
        raise UserError(
            f"a model of the task {task.card.name} writes no text",
            where=f"--{names.get(first, first.replace('_', '-'))}",
            remedy="Leave it out.",
        )
    return {}


def _pieces(options: PredictOptions) -> PieceOptions:
    """How rows are cut, as far as the options say it."""
    whole_image = None if options.whole_image else False
    return PieceOptions(
        options.tile, options.overlap, whole_image, options.max_boxes, options.block, options.stride, options.merge
    )


@dataclass(frozen=True)
class Prediction:
    """splitter, cost and budget: how rows become chunks. recorder, fields: how answers become records. generation: settings of
    texts that are written.
    """

    options: PredictOptions
    parts: Parts
    found: FoundModel
    splitter: RowSplitter
    recorder: Recorder
    cost: ExampleCost
    budget: int
    fields: Fields
    generation: dict[str, Any]

    @classmethod
    def of(cls, found: FoundModel, options: PredictOptions, parts: Parts) -> Prediction:
        task, artifacts = _task(found, options), found.artifacts
        record = RecordOptions(options.top_k, options.threshold, options.logprobs)
        splitter = make_splitter(task, artifacts, _pieces(options))
        return cls(
            options,
            parts,
            found,
            splitter,
            Recorder(task, artifacts, splitter, record),
            _cost(task, artifacts, options),
            options.budget or chunk_budget(task, "cuda" if uses_cuda() else "cpu"),
            record_fields(task, artifacts, record),
            _generation(task, options),
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of its training, by which rows are measured that say what their answer should be."""
        stored, asked = self.found.stored, self.found.recipe.evaluation.metrics
        if stored is not None and "metrics" in stored.training:
            return tuple(stored.training["metrics"])
        return self.recorder.task.card.metrics.default if asked is None else tuple(asked)

    @property
    def metric_options(self) -> Mapping[str, Any]:
        return load_task(self.found.recipe.task).metric_options(self.found.artifacts)

    def open_stream(self) -> RowStream:
        """The rows that are asked. Raises: UserError for data that cannot be asked."""
        card, keep = self.recorder.task.card, self.options.keep
        sources = asked_sources(self.options.data, self.options.read)
        if len(sources) > 1:
            sources = [source for source in sources if self._has_rows(source)]
        try:
            if sources:
                reserved, columns = RecordColumns(self.fields).reserved, self._columns()
                return open_stream(sources, card, columns=columns, keep=keep, reserved=reserved, notify=print_line)
        except EmptyData:
            pass
        return MemoryStream([], card)

    def _columns(self) -> ColumnChoice:
        recipe, task = self.found.recipe, self.recorder.task
        line_role = task.card.rows.role_of_lines(self.found.artifacts.options)
        return ColumnChoice(parse_columns(self.options.columns), dict(recipe.data.columns), line_role)

    def _has_rows(self, source: SourceSection) -> bool:
        """Whether it is not empty; one that is, is named."""
        try:
            open_stream([source], self.recorder.task.card, columns=self._columns())
        except EmptyData as empty:
            print_line(f"note: {empty.where}: {empty.what}")
            return False
        return True

    def draw(self) -> None:
        """Draw what was found, where the options say so. All rows are answered."""
        if self.options.draw is None:
            return
        artifacts, records = self.recorder.artifacts, read_records(self.parts.output, self.fields)
        rows, value_range = self.open_stream().rows(), artifacts.options.value_range
        drawn = draw_predictions(self.options.draw, rows, records, artifacts.labels, value_range)
        print_line(drawn.describe(self.options.draw))

    def manifest(self, stream: RowStream, window_rows: int) -> Manifest:
        """What the output is the answer to."""
        return Manifest(
            sources=list(self.options.data),
            identity=stream.identity(),
            model=self.found.name,
            digest=self.found.digest,
            options=self.options.asked(),
            budget=self.budget,
            window_rows=window_rows,
        )
