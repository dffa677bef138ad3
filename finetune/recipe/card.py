"""What the rest of the program needs to know about a task. Each task declares one card, without importing torch.

A card has a part for each kind of reader; what a part does not say has the default written here. The smallest card:

    CARD = TaskCard(
        name="sorting",
        summary="Sort texts into classes.",
        rows=RowSpec(
            columns={"text": "The text.", "label": "Its class."}, required=(("text",), ("label",)), targets=("label",)
        ),
        metrics=MetricSpec(available=("accuracy",), default=("accuracy",), best="accuracy"),
        loss=LossSpec(unit="example"),
        model=ModelSpec(auto_class="AutoModelForSequenceClassification"),
    )
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from finetune.recipe.roles import IMAGES, LABELS
from finetune.recipe.section import Section


class NoOptions(Section):
    """A task without options of its own."""


@dataclass(frozen=True, eq=False)
class RowSpec:
    """Read by data/, inspection/ and whoever takes rows from users: what a row holds.

    columns: role -> what it holds for the task (`data.columns` maps roles to the data's columns). A role that another task
    has, too, means the same there (recipe/roles.py).
    required: roles that every row must have, each entry a tuple of alternatives (one of which is enough).
    targets: roles that say what the answer should be; rows that are only asked (prediction) need none of them.
    asked: roles that such rows must have, as `required`; (): those of `required` without targets.
    asked_columns: further roles that only such rows may have, as `columns`.
    line_role: the role of a line of plain text; line_roles: (option, {its value: another role}).
    class_role: the role that names classes, "" for none: held-out rows leave a row of each class in training.
    several: (option, value) with which a row may have any number of labels in class_role, or none.
    column_hints: column that data without a required one may have -> what it means and what to do.
    unhashed: roles that do not count when validation rows are held out by a hash of their content.
    """

    columns: Mapping[str, str]
    required: tuple[tuple[str, ...], ...]
    targets: tuple[str, ...] = ()
    asked: tuple[tuple[str, ...], ...] = ()
    asked_columns: Mapping[str, str] = field(default_factory=dict)
    line_role: str = ""
    line_roles: tuple[str, Mapping[str, str]] = ("", {})
    class_role: str = ""
    several: tuple[str, str] | None = None
    column_hints: Mapping[str, str] = field(default_factory=dict)
    unhashed: tuple[str, ...] = ()

    @property
    def contents(self) -> tuple[str, ...]:
        """The roles by which rows are the same: all but labels."""
        return tuple(role for role in self.columns if role not in LABELS)

    @property
    def image_role(self) -> str:
        """The role whose values are images; "" if there is none."""
        return next((role for role in self.columns if role in IMAGES), "")

    def has_label_sets(self, options: object) -> bool:
        """Whether a row may have any number of labels, given the recipe's `options` section."""
        return self.several is not None and getattr(options, self.several[0], None) == self.several[1]

    def for_asking(self) -> RowSpec:
        """Of rows that are asked: no targets are required, and asked_columns are columns."""
        asked = self.asked or tuple(roles for roles in self.required if not set(roles) <= set(self.targets))
        return replace(self, columns={**self.columns, **self.asked_columns}, required=asked)

    def role_of_lines(self, options: object) -> str:
        """The role of a line of plain text, given the recipe's `options` section; "" if there is none."""
        option, others = self.line_roles
        return others.get(getattr(options, option, ""), self.line_role) if option else self.line_role

    def required_values(self, options: object) -> tuple[tuple[str, ...], ...]:
        """`required`, without the roles that need a column, but not a value in every row."""
        if not self.has_label_sets(options):
            return self.required
        return tuple(roles for roles in self.required if roles != (self.class_role,))


@dataclass(frozen=True)
class MetricSpec:
    """Read by evaluation and by whoever shows one figure of a run.

    available: names of modules in `metrics/` that the task can feed; default: those computed unless the recipe says
    otherwise; best: the metric that chooses the best checkpoint.
    """

    available: tuple[str, ...]
    default: tuple[str, ...]
    best: str


@dataclass(frozen=True)
class LossSpec:
    """Read by the checks of recipes, progress lines and the report.

    unit: what the loss is divided by ("token", "example", "image"). label_smoothing: the loss has labels to smooth.
    note: why the losses of training and evaluation are not on one scale, for the report; "": they are.
    """

    unit: str
    label_smoothing: bool = False
    note: str = ""


@dataclass(frozen=True)
class BatchSpec:
    """Read by planning/, which resolves `auto`, and by the loader.

    micro_batch: examples per forward pass on one rank, if the recipe says auto and there are more.
    packing: the automatic data.packing; packings: what the task supports.
    sequences: of an example (a pair of replies: 2), where an automatic data.capacity holds a whole micro-batch of the
    longest examples; 0: where it holds one sequence.
    balance_window: steps over which examples are balanced by length, where it is automatic.
    decodes: examples are decoded when they are fetched (images), so loader processes pay off.
    """

    micro_batch: int = 16
    packing: str = "none"
    packings: tuple[str, ...] = ("none",)
    sequences: int = 0
    balance_window: int = 1
    decodes: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """Read by whoever loads or splits a model.

    auto_class: the class of transformers that makes its models, such as AutoModelForCausalLM.
    outputs: names of the tensors [examples, ...] in what a model of that class returns that the task reads: where an adapter
    is merged, these are compared. AutoModel: last_hidden_state; a detector: logits and pred_boxes.
    splits: ways they can be split over ranks that train ("tensor", "pipeline").
    stages: how they are split over ranks that answer (`--stages`, app/asked_stages.py); "": they are not.
    embeds: they are encoders, whose last hidden states make an embedding of a row (`finetune predict --embed`).
    """

    auto_class: str
    outputs: tuple[str, ...] = ("logits",)
    splits: tuple[str, ...] = ()
    stages: Literal["", "blocks", "parts"] = ""
    embeds: bool = False


@dataclass(frozen=True)
class AnswerSpec:
    """Read by inference/ and the report.

    pieces: what large rows are cut into when they are answered (inference/pieces/); "": they are never cut.
    merges: how the answers of the pieces of a row can become one (`--merge`); (): in one way only.
    picture_legend: what is drawn into the pictures of the report; "": they show the image as the model sees it.
    """

    pieces: Literal["", "boxes", "images", "texts", "words"] = ""
    merges: tuple[str, ...] = ()
    picture_legend: str = ""


@dataclass(frozen=True, eq=False)
class TaskCard:
    """name: the `task:` of a recipe, and the task's folder. summary: a sentence for people who choose a task.

    title: the task in words, for model cards; "": its name. options: the schema of the recipe's `options:` section.
    """

    name: str
    summary: str
    rows: RowSpec
    metrics: MetricSpec
    loss: LossSpec
    model: ModelSpec
    batches: BatchSpec = BatchSpec()
    answers: AnswerSpec = AnswerSpec()
    title: str = ""
    options: type[Section] = NoOptions

    def for_asking(self) -> TaskCard:
        """The card of rows that are asked; see RowSpec.for_asking."""
        return replace(self, rows=self.rows.for_asking())
