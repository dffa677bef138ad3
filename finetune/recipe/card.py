"""What a recipe needs to know about a task. Each task declares one card, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from finetune.recipe.section import Section

LABELS = frozenset({"label", "tags", "objects"})  # roles that are labels in every task


class NoOptions(Section):
    """A task without options of its own."""


@dataclass(frozen=True, eq=False)
class TaskCard:
    """name: the `task:` of a recipe. columns: role -> what it holds (`data.columns` maps roles to the data's columns).

    required: roles that every row must have, each entry a tuple of alternatives (one of which is enough).
    targets: roles that say what the answer should be; rows that are only asked (prediction) need none of them.
    asked: roles that such rows must have, as `required`; (): those of `required` without targets.
    line_role: the role of a line of plain text; line_roles: (option, {its value: another role}).
    asked_columns: further roles that only such rows may have, as `columns`.
    options: the schema of the recipe's `options:` section. metrics: names of modules in `metrics/` that the task can
    feed; default_metrics: those computed unless the recipe says otherwise; best: the metric that chooses the best.
    unit: the unit of loss ("token", "example", "image"), for progress lines. packing: the automatic
    data.packing; packings: what the task supports. rows: sequences of an example (a pair of replies: 2), where an
    automatic data.capacity holds a whole micro-batch of the longest examples; 0: where it holds one sequence.
    balance_window: steps over which examples are balanced by length, where it is automatic.
    class_role: the role that names classes, "" for none: held-out rows leave a row of each class in training.
    several: (option, value) with which a row may have any number of labels in class_role, or none.
    splits: ways its models can be split over ranks ("tensor", "pipeline").
    auto_model: the class of transformers that makes its models, such as AutoModelForCausalLM.
    title: the task in words, for model cards; "": its name.
    decodes: examples are decoded when they are fetched (images), so loader processes pay off.
    embeds: its models are encoders, whose last hidden states make an embedding of a row (`finetune predict --embed`).
    pieces: what large rows are cut into when they are answered (inference/pieces/); "": they are never cut.
    merges: how the answers of the pieces of a row can become one (`--merge`); (): in one way only.
    stages: how its models are split over ranks that answer (`--stages`, app/asked_stages.py); "": they are not.
    picture_legend: what is drawn into the pictures of the report; "": they show the image as the model sees it.
    loss_note: why the losses of training and evaluation are not on one scale, for the report.
    unhashed: columns that do not count when validation rows are held out by a hash of their content.
    """

    name: str
    summary: str
    columns: Mapping[str, str]
    required: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...]
    default_metrics: tuple[str, ...]
    best: str
    unit: str
    auto_model: str = ""
    title: str = ""
    options: type[Section] = NoOptions
    label_smoothing: bool = False
    packing: str = "none"
    packings: tuple[str, ...] = ("none",)
    rows: int = 0
    balance_window: int = 1
    decodes: bool = False
    micro_batch: int = 16  # examples per forward pass on one rank, if the recipe says auto and there are more
    splits: tuple[str, ...] = ()
    embeds: bool = False
    pieces: Literal["", "boxes", "images", "texts", "words"] = ""
    merges: tuple[str, ...] = ()
    stages: Literal["", "blocks", "parts"] = ""
    picture_legend: str = ""
    loss_note: str = ""
    unhashed: tuple[str, ...] = ()
    class_role: str = ""
    several: tuple[str, str] | None = None
    targets: tuple[str, ...] = ()
    asked: tuple[tuple[str, ...], ...] = ()
    asked_columns: Mapping[str, str] = field(default_factory=dict)
    line_role: str = ""
    line_roles: tuple[str, Mapping[str, str]] = ("", {})

    @property
    def contents(self) -> tuple[str, ...]:
        """The roles by which rows are the same: all but labels."""
        return tuple(role for role in self.columns if role not in LABELS)

    def has_label_sets(self, options: object) -> bool:
        """Whether a row may have any number of labels, given the recipe's `options` section."""
        return self.several is not None and getattr(options, self.several[0], None) == self.several[1]

    def for_asking(self) -> TaskCard:
        """The card of rows that are asked: no targets are required, and asked_columns are columns."""
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
