"""All tasks by name. Importing this needs neither torch nor transformers: their tasks import them when they work."""

from __future__ import annotations

from finetune.recipe.card import TaskCard
from finetune.tasks.causal_lm.task import CausalLM
from finetune.tasks.image_classification.task import ImageClassification
from finetune.tasks.object_detection.task import ObjectDetection
from finetune.tasks.preference.task import Preference
from finetune.tasks.reward_model.task import RewardModel
from finetune.tasks.seq2seq.task import Seq2Seq
from finetune.tasks.sequence_regression.task import SequenceRegression
from finetune.tasks.task import Task
from finetune.tasks.text_classification.task import TextClassification
from finetune.tasks.token_classification.task import TokenClassification

TASKS: dict[str, Task] = {
    "text_classification": TextClassification(),
    "token_classification": TokenClassification(),
    "sequence_regression": SequenceRegression(),
    "reward_model": RewardModel(),
    "preference": Preference(),
    "seq2seq": Seq2Seq(),
    "causal_lm": CausalLM(),
    "image_classification": ImageClassification(),
    "object_detection": ObjectDetection(),
}

CARDS: dict[str, TaskCard] = {name: task.card for name, task in TASKS.items()}
