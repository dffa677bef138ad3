"""A model of Llama's shape without weights, its word-level tokenizer, and rows of a given length, made in seconds.

    python -m benchmarks.gpu.make FOLDER SHAPE ROWS full|lognormal TOKENS
    python -m benchmarks.gpu.make FOLDER - COUNT pictures EDGE

Both sides draw the weights on the device from config.json. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.gpu.jobs import tell

# hidden, feed-forward, layers, heads, key-value heads, tied, vocabulary
SHAPES = {
    "1b": (2048, 8192, 16, 32, 8, True, 128_256),
    "8b": (4096, 14_336, 32, 32, 8, False, 128_256),
    "tiny": (64, 128, 2, 4, 2, True, 3_000),
}
SPECIAL = ("<pad>", "<eos>", "<unk>")
LONGEST = 131_072
CLASSES = 10


def make_model(folder: Path, shape: str) -> None:
    """config.json and a tokenizer of one token per word in `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    hidden, inner, layers, heads, groups, tied, vocabulary = SHAPES[shape]
    words = [f"w{index}" for index in range(vocabulary - len(SPECIAL))] + list(SPECIAL)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    _write(folder / "tokenizer.json", tokenizer.to_str())
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST}
    _write(folder / "tokenizer_config.json", json.dumps(kind | marks))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": hidden // heads,
        "tie_word_embeddings": tied,
        "vocab_size": vocabulary,
        "max_position_embeddings": LONGEST,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "rms_norm_eps": 1e-5,
        "pad_token_id": vocabulary - 3,
        "eos_token_id": vocabulary - 2,
        "bos_token_id": None,
        "transformers_version": "5.17.0",  # without it, this size of vocabulary is warned of as that of another family
    }
    _write(folder / "config.json", json.dumps(config, indent=1))


def make_rows(folder: Path, shape: str, rows: int, lengths: str, tokens: int) -> None:
    """`rows` texts of random words: each of tokens - 1 words and an end mark, or lognormal with a mean of about 490."""
    rng = np.random.default_rng(0)
    words = [f"w{index}" for index in range(SHAPES[shape][6] - len(SPECIAL))]
    counts = np.full(rows, tokens - 1)
    if lengths == "lognormal":
        counts = np.clip(rng.lognormal(5.7, 1.0, rows), 8, tokens - 1).astype(int)
    with (folder / f"{lengths}-{rows}-{tokens}.jsonl").open("w", encoding="utf-8") as file:
        for count in counts:
            text = " ".join([words[index] for index in rng.integers(0, len(words), count).tolist()])
            file.write(f'{{"text": "{text}"}}\n')


def make_pictures(folder: Path, count: int, edge: int) -> None:
    """JPEG files of smooth random pictures, one folder per class, made by all cores."""
    for index in range(CLASSES):
        (folder / f"class-{index}").mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pool.starmap(_make_picture, [(folder, index, edge) for index in range(count)], chunksize=16)


def _make_picture(folder: Path, index: int, edge: int) -> None:
    from PIL import Image

    small = np.random.default_rng(index).integers(0, 255, (16, 16, 3), np.uint8)
    picture = Image.fromarray(small).resize((edge, edge), Image.Resampling.BICUBIC)
    picture.save(folder / f"class-{index % CLASSES}" / f"{index}.jpg", quality=90)


def _write(path: Path, content: str) -> None:
    """Whole or not at all: makers of several data sets of one model run side by side."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)


def parameters(shape: str) -> int:
    """How many parameters a model of this shape has; a tied embedding counts once."""
    hidden, inner, layers, heads, groups, tied, vocabulary = SHAPES[shape]
    attention = 2 * hidden * hidden + 2 * hidden * (hidden // heads) * groups
    layer = attention + 3 * hidden * inner + 2 * hidden
    return layers * layer + hidden + vocabulary * hidden * (1 if tied else 2)


def main() -> None:
    """See the head of the file."""
    folder, shape, rows, lengths, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    folder.mkdir(parents=True, exist_ok=True)
    if lengths == "pictures":
        make_pictures(folder, rows, size)
    else:
        if not (folder / "config.json").exists():
            make_model(folder, shape)
        make_rows(folder, shape, rows, lengths, size)
    tell(made=str(folder))


if __name__ == "__main__":
    main()
