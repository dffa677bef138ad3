"""All tasks by name. Importing this needs neither torch nor transformers: their tasks import them when they work."""

from __future__ import annotations

from finetune.recipe.card import TaskCard
from finetune.tasks.causal_lm import CausalLM
from finetune.tasks.image_classification import ImageClassification
from finetune.tasks.object_detection import ObjectDetection
from finetune.tasks.preference import Preference
from finetune.tasks.reward_model import RewardModel
from finetune.tasks.seq2seq import Seq2Seq
from finetune.tasks.sequence_regression import SequenceRegression
from finetune.tasks.task import Task
from finetune.tasks.text_classification import TextClassification
from finetune.tasks.token_classification import TokenClassification

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
