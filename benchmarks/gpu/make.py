"""A model of Llama's shape with random weights, its word-level tokenizer, and rows of a given length, made in seconds.

python -m benchmarks.gpu.make FOLDER SHAPE ROWS full|lognormal TOKENS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

# hidden, feed-forward, layers, heads, key-value heads, tied, vocabulary
SHAPES = {
    "1b": (2048, 8192, 16, 32, 8, True, 128_256),
    "8b": (4096, 14_336, 32, 32, 8, False, 128_256),
    "tiny": (64, 128, 2, 4, 2, True, 3_000),
}
SPECIAL = ("<pad>", "<eos>", "<unk>")


def make_model(folder: Path, shape: str) -> None:
    """config.json, bf16 weights and a tokenizer in `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, inner, layers, heads, groups, tied, vocabulary = SHAPES[shape]
    words = [f"w{index}" for index in range(vocabulary - len(SPECIAL))] + list(SPECIAL)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=1 << 17
    ).save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=tied,
        vocab_size=vocabulary,
        max_position_embeddings=131_072,
        rope_theta=500_000.0,
        pad_token_id=vocabulary - 3,
        eos_token_id=vocabulary - 2,
        bos_token_id=None,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="4GB")


def make_rows(folder: Path, shape: str, rows: int, lengths: str, tokens: int) -> Path:
    """`rows` texts of random words: each of tokens - 1 words and an end mark, or lognormal with a mean of about 490."""
    rng = np.random.default_rng(0)
    words = SHAPES[shape][6] - len(SPECIAL)
    counts = np.full(rows, tokens - 1)
    if lengths == "lognormal":
        counts = np.clip(rng.lognormal(5.7, 1.0, rows), 8, tokens - 1).astype(int)
    path = folder / f"{lengths}-{tokens}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for count in counts:
            text = " ".join(f"w{index}" for index in rng.integers(0, words, count))
            file.write(json.dumps({"text": text}) + "\n")
    return path


def make_pictures(folder: Path, count: int, size: int, classes: int) -> None:
    """JPEG files of smooth random pictures in one folder per class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(count):
        home = folder / f"class-{index % classes}"
        home.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(home / f"{index}.jpg", quality=90)


def main() -> None:
    """See the head of the file."""
    folder, shape, rows, lengths, tokens = (
        Path(sys.argv[1]),
        sys.argv[2],
        int(sys.argv[3]),
        sys.argv[4],
        int(sys.argv[5]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    if lengths == "pictures":
        make_pictures(folder, rows, tokens, classes=10)
    else:
        if not (folder / "config.json").exists():
            make_model(folder, shape)
        make_rows(folder, shape, rows, lengths, tokens)
    from benchmarks.gpu.jobs import tell

    tell(made=str(folder))


if __name__ == "__main__":
    main()
