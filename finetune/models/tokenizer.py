"""Loads the tokenizer that the recipe names, or trains one on the data. Every tokenizer gets a padding token."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.adapter_source import find_adapter
from finetune.models.chat_layouts import CHATML
from finetune.models.config import model_errors
from finetune.models.source import resolve_model
from finetune.recipe.model import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAIN_SCHEME = "train:"
TOKENIZER_FILES = ("*token*", "vocab*")
PAD, END_OF_TEXT, TURN_START, TURN_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MIN_VOCABULARY = 256 + 4  # all bytes, and the four special tokens
MAX_VOCABULARY = 10_000_000
UNUSED_IDS = 100_000  # that a tokenizer may leave out, beside as many as it has tokens

Publish = Callable[[str, str, Callable[[Path], Any]], Path]


def load_tokenizer(
    model: ModelSection, texts: Callable[[], Iterable[str]] | None = None, *, publish: Publish | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of model.tokenizer, or of model.source if it is not set, with a padding token.

    A tokenizer without a padding token pads with its end-of-text token. Labels are masked by position, not by token, so
    end-of-text tokens in the text are still learned.

    texts: returns the training texts in a fixed order; called for train:<size> only.
    publish: (kind, key, write) -> folder, such as `publish` of data/prepare/cache.py, so that all processes and runs
    with the same texts get the same trained tokenizer; None: do not cache it.
    Raises: UserError if there is no tokenizer, or if it does not give character offsets (it is not a fast one).
    """
    source = model.tokenizer or model.source
    if source.startswith(TRAIN_SCHEME):
        if texts is None:
            raise UserError(
                f"model.tokenizer: {source} needs texts to train on, but this task has none",
                remedy="Set model.tokenizer to a hub id, a folder, or package:<package>/<folder>.",
            )
        tokenizer = _load_trained(_vocabulary_size(source), texts, publish)
    else:
        tokenizer = _load(source, model)
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {source} does not give the offsets of tokens in the text",
            remedy="Use one in the fast format (tokenizer.json).",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(
            f"the tokenizer of {source} has neither a padding nor an end-of-text token",
            remedy="Add one: tokenizer.add_special_tokens({'pad_token': '<|pad|>'}), and save it to a folder.",
        )
    tokenizer.add_tokens(list(model.new_tokens))  # tokens that are in the vocabulary already keep their ids
    return tokenizer


def new_token_ids(model: ModelSection, tokenizer: PreTrainedTokenizerBase, grown: range) -> list[int]:
    """Ids of the embedding rows that must be trained in full beside an adapter, ascending.

    These are model.new_tokens and `grown`, the rows by which the embeddings were enlarged.
    """
    ids: Any = tokenizer.convert_tokens_to_ids(list(model.new_tokens))
    return sorted({*grown, *ids})


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest, 32 hex digits, of all that determines token ids: vocabulary, rules, special tokens, chat template."""
    backend: Any = tokenizer
    parts = [
        backend.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        str(sorted(map(str, tokenizer.special_tokens_map.items()))),
    ]
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).hexdigest()


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that embeddings need: the number of tokens, or more where ids are left out.

    Raises: UserError if most ids have no token, so that a damaged file does not ask for billions of rows.
    """
    count = len(tokenizer)
    size = max(count, max(tokenizer.get_vocab().values(), default=0) + 1)
    if size > 2 * count + UNUSED_IDS:
        raise UserError(
            f"the tokenizer has {count:,} tokens, and ids up to {size - 1:,}",
            where=str(tokenizer.name_or_path),
            remedy="Its files are damaged: copy or download them again.",
        )
    return size


def fresh_settings(model: ModelSection, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Configuration values of a model with random weights that follow from its tokenizer: vocabulary size, token ids.

    Empty for pretrained weights. Keys of model.config are not overridden. A padding token that is also the end-of-text
    token is left out, because models give the embedding of the padding token no gradient.
    """
    if model.init != "config":
        return {}
    ids = {
        "vocab_size": vocabulary_size(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        ids["pad_token_id"] = tokenizer.pad_token_id
    return {key: value for key, value in ids.items() if key not in model.config}


def set_padding(model: Any, tokenizer: PreTrainedTokenizerBase, *, always: bool = False) -> None:
    """Set model.config.pad_token_id. Call it after the embeddings are created.

    always: also if the padding token is the end-of-text token, as classifiers on top of decoders need.
    """
    if always or tokenizer.pad_token_id != tokenizer.eos_token_id:
        model.config.pad_token_id = tokenizer.pad_token_id


def _load(source: str, model: ModelSection) -> PreTrainedTokenizerBase:
    from transformers import CONFIG_MAPPING, AutoTokenizer

    only_type = not model.tokenizer and model.init == "config"  # then a folder of that name is not meant
    if source in CONFIG_MAPPING and (only_type or not Path(source).is_dir()):
        raise UserError(
            f"model.source is a model type, {source}, which has no tokenizer",
            remedy="Set model.tokenizer to a hub id, a folder, package:<package>/<folder>, or train:4096.",
        )
    with model_errors(source):
        adapter = find_adapter(source)
        location = adapter.holder(TOKENIZER_FILES) if adapter else resolve_model(source)
        folder = Path(location)
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
            raise UserError(
                "the folder contains no tokenizer",
                where=location,
                remedy="Set model.tokenizer to the folder or hub id that has one, or to train:4096.",
            )
        revision = "main" if model.tokenizer or adapter else model.revision
        options = {"revision": revision, "trust_remote_code": model.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        if not isinstance(tokenizer.model_max_length, (int, float)):
            raise ValueError(f"model_max_length is no number: {str(tokenizer.model_max_length)[:80]!r}")
        return tokenizer


def _vocabulary_size(source: str) -> int:
    text = source.removeprefix(TRAIN_SCHEME)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not MIN_VOCABULARY <= int(text) <= MAX_VOCABULARY:
        raise UserError(
            f"model.tokenizer: {source} is not of the form train:<vocabulary size>",
            remedy=f"Give the size as an integer of {MIN_VOCABULARY} to {MAX_VOCABULARY:,}, such as train:4096.",
        )
    return int(text)


def _load_trained(size: int, texts: Callable[[], Iterable[str]], publish: Publish | None) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    if publish is None:
        return _wrap(_train(size, texts()))
    folder = publish(
        "tokenizers", _key(size, texts()), lambda folder: _wrap(_train(size, texts())).save_pretrained(folder)
    )
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _key(size: int, texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(f"byte-level BPE 1 {size} {CHATML}".encode(), digest_size=16)
    for text in texts:
        digest.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
    return digest.hexdigest()


def _train(size: int, texts: Iterable[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wrap(tokenizer: Any) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHATML,
    )
