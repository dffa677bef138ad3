"""The tokenizer: loaded from where the recipe says, or trained on the data; always with a way to pad and to end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.config import model_errors
from finetune.models.source import resolve_model
from finetune.recipe.model import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAIN_SCHEME = "train:"
PAD, END_OF_TEXT, TURN_START, TURN_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SMALLEST = 256 + 4  # every byte, and the four marks

# ChatML; what stands between generation and endgeneration is what an assistant says, its end-of-turn mark included.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Publish = Callable[[str, str, Callable[[Path], Any]], Path]


def load_tokenizer(
    model: ModelSection, texts: Callable[[], Iterable[str]] | None = None, *, publish: Publish | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of model.tokenizer, or else of model.source, with a padding token.

    texts: called only for train:<size>, gives the training texts in a fixed order. publish(kind, key, write): the cache's
    door, by which all ranks and runs with the same texts get the same trained tokenizer.
    A tokenizer without a padding token pads with its end-of-text token; labels are masked by position, never by token, so
    the two do not clash.

    Raises: UserError where there is no tokenizer, or none that says where in the text a token lies.
    """
    wanted = model.tokenizer or model.source
    if wanted.startswith(TRAIN_SCHEME):
        if texts is None:
            raise UserError(
                f"model.tokenizer: {wanted} needs texts to train on, and this task has none",
                remedy="Name a tokenizer: a hub id, a folder, or package:<package>/<folder>.",
            )
        tokenizer = _load_trained(_vocabulary_size(wanted), texts, publish)
    else:
        tokenizer = _load(wanted, model)
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {wanted} cannot tell where a token lies in the text",
            remedy="Use one in the fast format (tokenizer.json).",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(
            f"the tokenizer of {wanted} has neither a padding nor an end-of-text token",
            remedy="Add one: tokenizer.add_special_tokens({'pad_token': '<|pad|>'}), and save it to a folder.",
        )
    tokenizer.add_tokens(list(model.new_tokens))  # what is in the vocabulary already stays where it is
    return tokenizer


def new_token_ids(model: ModelSection, tokenizer: PreTrainedTokenizerBase, grown: range) -> list[int]:
    """Of model.new_tokens, and of the rows by which the embeddings grew: what an adapter must train beside itself."""
    ids: Any = tokenizer.convert_tokens_to_ids(list(model.new_tokens))
    return sorted({*grown, *ids})


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hex digits that name everything that turns text into ids: vocabulary, rules, marks, chat template."""
    backend: Any = tokenizer
    parts = [
        backend.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        str(sorted(map(str, tokenizer.special_tokens_map.items()))),
    ]
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).hexdigest()


def fresh_settings(model: ModelSection, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the configuration of a model with random weights takes from its tokenizer: vocabulary and marks.

    Empty for pretrained weights; what model.config states stays. A padding token that is also the end-of-text token is
    not told: models give the padding token's embedding no gradient.
    """
    if model.init != "config":
        return {}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        ids["pad_token_id"] = tokenizer.pad_token_id
    return {key: value for key, value in ids.items() if key not in model.config}


def set_padding(model: Any, tokenizer: PreTrainedTokenizerBase, *, always: bool = False) -> None:
    """Write the padding token into model.config, after the embeddings were made; always: even if it is the end of text
    (classifiers on top of decoders look for it).
    """
    if always or tokenizer.pad_token_id != tokenizer.eos_token_id:
        model.config.pad_token_id = tokenizer.pad_token_id


def _load(wanted: str, model: ModelSection) -> PreTrainedTokenizerBase:
    from transformers import CONFIG_MAPPING, AutoTokenizer

    only_type = not model.tokenizer and model.init == "config"  # then a folder of that name is not meant
    if wanted in CONFIG_MAPPING and (only_type or not Path(wanted).is_dir()):
        raise UserError(
            f"model.source is a model type, {wanted}, which has no tokenizer",
            remedy="Set model.tokenizer: a hub id, a folder, package:<package>/<folder>, or train:4096.",
        )
    with model_errors(wanted):
        where = resolve_model(wanted)
        folder = Path(where)
        if folder.is_dir() and not any(folder.glob("*token*")) and not any(folder.glob("vocab*")):
            raise UserError(
                "the folder holds no tokenizer", where=where, remedy="Set model.tokenizer: where it is, or train:4096."
            )
        revision = model.revision if not model.tokenizer else "main"
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=model.trust_remote_code)


def _vocabulary_size(wanted: str) -> int:
    text = wanted.removeprefix(TRAIN_SCHEME)
    if not text.isdigit() or int(text) < SMALLEST:
        raise UserError(
            f"model.tokenizer: {wanted} is not train:<vocabulary size>",
            remedy=f"The size is a whole number of at least {SMALLEST}, such as train:4096.",
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
