"""Looks at the files of a model folder before a library opens one: it may come from a stranger. No torch here.

- Everything is a file or a folder: a pipe would be waited for, a device read without end.
- The index of weights names files of this folder in the safetensors format. Whatever else it names, such as a pickle, or a
  path that leaves the folder, would be opened by its name.
- Settings are JSON objects of bounded size and depth, and ask for a number of layers that can be built: 10^8 of them would
  be built for hours. No setting names code of the hub.

Headers of safetensors files are checked by their library, before it allocates anything.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.models.dependent_settings import check_buckets, check_experts
from finetune.recipe.json_file import read_json

INDEX_PATTERN = "*.index.json"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._=+-]*\.safetensors")
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json",
            "processor_config.json", "special_tokens_map.json", "added_tokens.json", "adapter_config.json")  # fmt: skip
MAX_SETTINGS_BYTES = 64 << 20
MAX_TEXT_BYTES = 256 << 20  # of a vocabulary or a tokenizer; libraries read them whole
MAX_TEMPLATE_BYTES = 4 << 20
MAX_TOKEN_ID = 100_000_000  # what libraries allocate by
MAX_DEPTH = 64
MAX_LAYERS = 10_000  # the deepest published models have a few hundred
MAX_SIZE = 1 << 40  # of any dimension
COUNTS = {"num_labels": 1_000_000, "num_channels": 4_096}
_COUNTS = re.compile(r"num_\w+|n_\w+|\w*(vocab|hidden|embedding|embed|intermediate|ffn)_?(size|dim|dims)|d_model|d_ff")
_COUNTS_LAYERS = re.compile(r"(^|_)(num_|n_)?(\w+_)?(layers?|blocks?|depths?|n_layer)$")
_PROBABILITIES = re.compile(r"\w*(dropout|drop_path|layerdrop)(_prob|_rate|_p)?|\w*dropout_\w+|\w*pdrop")
_EPSILONS = re.compile(r"\w*(_eps|_epsilon)|epsilon|eps")
_READ_WHOLE = re.compile(r"(vocab|merges|\w*token|spiece|sentencepiece|chat_template).*\.(json|txt|model)|.*\.jinja")
_LARGE_ID = re.compile(rb":\s*[0-9]{9}")
_KERNEL_KEYS = re.compile(r"^_?(attn|experts)_implementation")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
CONVERT = (
    "Convert the weights once where you trust them: AutoModel.from_pretrained(FOLDER, use_safetensors=False)"
    ".save_pretrained(NEW_FOLDER)"
)


def check_model_folder(folder: Path) -> None:
    """Raises: UserError for files that must not be opened, with what to do about them."""
    try:
        signature = tuple(sorted(_signature(path) for path in folder.iterdir()))
    except OSError as error:
        raise UserError(f"the model folder cannot be read: {error.strerror}", where=str(folder)) from None
    _check(folder, signature)


def check_layers(settings: Mapping[str, Any], where: str) -> None:
    """Raises: UserError if a setting asks for more layers or labels than a model has, for a negative number of them, or for
    a probability that is none; if experts, buckets of positions or heads cannot be divided into groups; if a model would
    not return names with its outputs.
    """
    heads, groups = settings.get("num_attention_heads"), settings.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups:
        raise UserError(
            f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({groups})",
            where=where,
            remedy="Correct one of them.",
        )
    check_experts(settings, where)
    check_buckets(settings, where)
    for key, value in _settings_of(settings):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _is_beyond(key, value):
            raise UserError(f"{key} is out of range: {str(value)[:40]}", where=where, remedy="Correct the number.")
        if key == "return_dict" and value is False:
            raise UserError("return_dict is false", where=where, remedy="Outputs are read by name: remove the key.")
        if _COUNTS_LAYERS.search(key) and _most(value) > MAX_LAYERS:
            raise UserError(
                f"{key} asks for more than {MAX_LAYERS:,} layers: {str(value)[:40]}",
                where=where,
                remedy="It would be built for hours. Correct the number of layers.",
            )


def _is_beyond(key: str, value: float) -> bool:
    if _COUNTS.fullmatch(key):
        return not 0 <= value <= COUNTS.get(key, MAX_SIZE)
    if _PROBABILITIES.fullmatch(key):
        return not 0 <= value <= 1
    return _EPSILONS.fullmatch(key) is not None and not 0 <= value < math.inf


def check_index(content: Any, where: str) -> None:
    """The index of a model's weights. Raises: UserError if it names anything but safetensors files beside it."""
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict):
        raise UserError("the index of the weights has no weight_map", where=where, remedy="Copy the model again.")
    for name in dict.fromkeys(map(str, named.values())):
        if name.lower().endswith(PICKLES):
            raise UserError(
                f"the index of the weights names a pickle, which can run code and is never opened: {name!r}",
                where=where,
                remedy=CONVERT,
            )
        if not SAFE_NAME.fullmatch(name):
            raise UserError(
                f"the index of the weights names something else than a safetensors file beside it: {name[:200]!r}",
                where=where,
                remedy="Copy or download the model again, from a source that you trust.",
            )


def _signature(path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()
    except OSError:  # a link to nothing: whoever needs the file says so
        return (path.name, 0, 0, 0)
    return (path.name, status.st_mode, status.st_size, status.st_mtime_ns)


@lru_cache(64)
def _check(folder: Path, signature: tuple[tuple[str, int, int, int], ...]) -> None:
    for name, mode, _, _ in signature:
        if mode and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserError(
                "the model folder holds something that is neither a file nor a folder", where=str(folder / name)
            )
    names = {name for name, mode, _, _ in signature if stat.S_ISREG(mode)}
    for name, _, size, _ in signature:
        _check_size(folder / name, size)
    for path in folder.glob("*/*.jinja"):  # additional_chat_templates
        _check_size(path, path.stat().st_size if path.is_file() else 0)
    if "tokenizer.json" in names:
        _check_token_ids(folder / "tokenizer.json")
    for name in sorted(names & set(SETTINGS)):
        settings = _read(folder / name)
        if not isinstance(settings, dict):
            raise UserError("the settings are not a JSON object", where=str(folder / name), remedy="Copy it again.")
        if name == "config.json":
            _check_config(settings, str(folder / name))
    for name in sorted(name for name in names if Path(name).match(INDEX_PATTERN)):
        if not _is_pickle_index(name):
            check_index(_read(folder / name), str(folder / name))


def _check_size(path: Path, size: int) -> None:
    limit = MAX_TEMPLATE_BYTES if path.suffix == ".jinja" else MAX_TEXT_BYTES
    if _READ_WHOLE.fullmatch(path.name) and size > limit:
        raise UserError(
            f"has {size:,} bytes, more than {limit:,}", where=str(path), remedy="It is damaged, or no file of a model."
        )


def _check_token_ids(path: Path) -> None:
    """Raises: UserError for an id of a token that no vocabulary reaches: tables are as long as the largest one."""
    if not _LARGE_ID.search(path.read_bytes()):
        return
    try:
        tree = read_json(path)
        added = [one["id"] for one in tree.get("added_tokens") or ()]
        vocabulary = (tree.get("model") or {}).get("vocab")
        ids = [*added, *(vocabulary.values() if isinstance(vocabulary, dict) else ())]
        largest = max((number for number in ids if isinstance(number, int)), default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # the library says what it expects
    if largest > MAX_TOKEN_ID:
        raise UserError(f"a token has the id {largest:,}", where=str(path), remedy="Copy or download the model again.")


def _is_pickle_index(name: str) -> bool:
    """pytorch_model.bin.index.json: of weights that are not asked for."""
    return any(f"{suffix}.index" in name for suffix in PICKLES)


def _read(path: Path) -> Any:
    try:
        value = read_json(path, limit=MAX_SETTINGS_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read: {error}", where=str(path), remedy="Copy or download the model again."
        ) from None
    if _depth(value) > MAX_DEPTH:
        raise UserError(f"nested more than {MAX_DEPTH} levels deep", where=str(path))
    return value


def _check_config(settings: Mapping[str, Any], where: str) -> None:
    check_layers(settings, where)
    kind = settings.get("model_type")
    if kind is not None and (not isinstance(kind, str) or len(kind) > MAX_DEPTH):
        raise UserError(f"model_type is no name of an architecture: {str(kind)[:80]!r}", where=where)
    for key, value in _settings_of(settings):
        if _KERNEL_KEYS.match(key) and isinstance(value, str) and "/" in value:
            raise UserError(
                f"{key} names code of the hub, which is not run: {value[:80]!r}",
                where=where,
                remedy="Remove the key; model.attention of the recipe chooses the implementation.",
            )


def _settings_of(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key and value, of the settings within settings too."""
    for key, value in tree.items():
        yield str(key), value
        if isinstance(value, Mapping):
            yield from _settings_of(value)


def _most(value: Any) -> float:
    """The largest number of a value, or the sum of a list of them."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return sum(map(_most, value)) if isinstance(value, (list, tuple)) else 0


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list)))
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        depth += 1
    return depth
