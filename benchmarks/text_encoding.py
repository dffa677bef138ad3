"""Rows per second of processor time of encoding text: instructions and chats, with a marked and an unmarked template.

python -m benchmarks.text_encoding
"""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection
from finetune.tasks.causal_lm.card import CausalLMOptions
from finetune.tasks.causal_lm.data import encode_rows

WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
)
UNMARKED = (  # Llama 3's manner: no generation marks, contents are stripped
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n\\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"
)
ROWS = 2_000
BATCH = 256


def main() -> None:
    """Print a line for each kind of rows and template."""
    chance = random.Random(0)

    def words(count: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(count // 2, count * 2)))

    alpaca = [{"instruction": words(12), "input": "", "output": words(60)} for _ in range(ROWS)]
    chats = [
        {"messages": [{"role": role, "content": words(30)} for _ in range(4) for role in ("user", "assistant")]}
        for _ in range(ROWS)
    ]
    section = ModelSection(source="llama", init="config", tokenizer="train:2000")
    tokenizer: Any = load_tokenizer(section, lambda: iter([words(400) for _ in range(50)]))
    marked = tokenizer.chat_template
    for template_name, template in (("marked", marked), ("unmarked", UNMARKED)):
        tokenizer.chat_template = template
        settings = {"own_template": True, "max_length": 1024}
        artifacts: Any = SimpleNamespace(options=CausalLMOptions(), processor=tokenizer, settings=settings)
        for kind, rows in (("instructions", alpaca), ("8 turns", chats)):
            started = time.process_time()
            for first in range(0, ROWS, BATCH):
                encode_rows(artifacts, rows[first : first + BATCH], with_targets=True)
            print(f"{kind:14s}{template_name:10s}{ROWS / (time.process_time() - started):8,.0f} rows/s", flush=True)


if __name__ == "__main__":
    main()
