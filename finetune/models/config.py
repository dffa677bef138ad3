"""The configuration of a model: read from its source, or made from a model type, with the recipe's overrides checked."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError, UserError
from finetune.models.adapter_source import adapter_of
from finetune.models.folder_check import CONVERT, check_layers
from finetune.models.source import check_described, resolve_model
from finetune.recipe.model import ModelSection
from finetune.recipe.user_path import near_path

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


# What libraries raise for settings of odd types and values.
ODD_FILES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)
SHOWN = 500  # characters of such an error


def load_config(model: ModelSection, **overrides: Any) -> PreTrainedConfig:
    """The configuration that `model` describes; model.config wins over what is loaded, `overrides` (the task's: labels,
    vocabulary) win over both.

    Raises: UserError for an unknown key or a value of the wrong type, with the nearest key; and if the source is missing,
    with how to get it.
    """
    from transformers import AutoConfig

    check_layers(model.config, "model.config")
    asked = {**model.config, **overrides}
    if is_model_type(model):
        with model_errors(model.source):
            default = AutoConfig.for_model(model.source)
            _check_keys(default, model.config)
            config = AutoConfig.for_model(model.source, **asked)
        check_layers(config.to_dict(), "model.config")  # with the library's defaults
        return config
    adapter = adapter_of(model)
    where = adapter.holder(["config.json"]) if adapter else resolve_model(model.source)
    with model_errors(where, f"{where} (the base of the adapter {model.source})" if adapter else model.source):
        if Path(where).is_dir():
            check_described(Path(where), ("config.json",))
        options = {"revision": "main" if adapter else model.revision, "trust_remote_code": model.trust_remote_code}
        config = AutoConfig.from_pretrained(where, **options)
        _check_keys(config, model.config)
        if asked:
            config = AutoConfig.from_pretrained(where, **options, **asked)
    check_layers(config.to_dict(), where)
    if adapter and hasattr(config, "quantization_config") and not _is_quantized(adapter.base, model):
        del config.quantization_config  # how the base was held while the adapter was trained
    return config


def stored_config(source: str, model: ModelSection) -> PreTrainedConfig:
    """The configuration of the base `source` of an adapter, as it is stored."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source, trust_remote_code=model.trust_remote_code)


def _is_quantized(base: str, model: ModelSection) -> bool:
    return hasattr(stored_config(base, model), "quantization_config")


def is_model_type(model: ModelSection) -> bool:
    """Whether model.source is a model type alone (such as "llama"), whose weights can only be random.

    With init: config the type wins over a folder of that name in the current directory (./llama means the folder); for
    pretrained weights it is the folder.
    Raises: UserError if it is one, but init is not `config`.
    """
    from transformers import CONFIG_MAPPING

    if model.source not in CONFIG_MAPPING:
        return False
    if model.init != "config":
        if Path(model.source).is_dir():
            return False
        raise UserError(
            f"model.source is a model type, {model.source}, which has no weights",
            remedy="Name a hub id or a folder, or set model.init: config to train from random weights.",
        )
    return True


def _check_keys(config: PreTrainedConfig, asked: dict[str, Any]) -> None:
    """A mistyped override would be kept by transformers as an attribute that nothing reads."""
    known = set(config.to_dict()) | set(config.attribute_map) | {"num_labels"}
    for key in asked:
        if key not in known and not hasattr(config, key):
            near = difflib.get_close_matches(key, known, 1)
            raise UserError(
                f"model.config: a {config.model_type} model has no setting {key!r}",
                remedy=f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(known)[:40])} ...",
            )


@contextmanager
def model_errors(source: str, shown: str = "") -> Iterator[None]:
    """Raises: UserError in place of what transformers and the hub client raise; a full memory passes. shown: the name in
    messages.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except FinetuneError:
        raise
    except StrictDataclassError as error:
        raise UserError(
            f"model.config: {_last_line(error)}",
            remedy="Correct the value in the recipe, or in the model's config.json.",
        ) from None
    except SafetensorError as error:
        raise UserError(
            f"the weights of {shown or source} are damaged: {_first_line(error)}",
            remedy="Copy or download the model again.",
        ) from None
    except OSError as error:
        raise _unreadable(source, shown or source, error) from None
    except Exception as error:  # of settings that no library expects; tokenizers raises Exception itself
        if not isinstance(error, ODD_FILES) and type(error) is not Exception:
            raise
        raise _unusable(shown or source, error) from error


def _unreadable(source: str, shown: str, error: OSError) -> UserError:
    """Why the files of a model cannot be had, from the errors of the hub client that led to this one."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    chain = _causes(error)
    if any(isinstance(cause, GatedRepoError) for cause in chain):
        what, remedy = "is gated", "Accept its license on the hub, then: hf auth login"
    elif any(isinstance(cause, RevisionNotFoundError) for cause in chain):
        what, remedy = "has no such revision", "Check model.revision."
    elif any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
        what, remedy = "is not on the hub, or is private", "Check the name; for a private one: hf auth login"
    elif Path(resolve_model(source)).is_dir():
        what, remedy = f"cannot be read: {_first_line(error)}", _missing_weights_remedy(Path(resolve_model(source)))
    else:
        what = "is not on this machine, and the hub cannot be reached"
        remedy = (
            f"{near_path(shown)}It needs the network once (hf download NAME fills the cache); or give a folder, or "
            "package:<package>/<folder>, in its place."
        )
    return UserError(f"the model {shown} {what}", remedy=remedy)


def _unusable(shown: str, error: Exception) -> UserError:
    """What a library says of settings or files that it does not expect."""
    if "trust_remote_code" in str(error):
        return UserError(
            f"the model {shown} brings Python code of its own",
            remedy="If you trust its author, allow it: --trust-remote-code, or model.trust_remote_code in a recipe.",
        )
    what = _first_line(error)
    if type(error) not in (ValueError, ImportError):
        what = f"{type(error).__name__}: {what}"
    return UserError(
        f"the model {shown} cannot be used: {what[:SHOWN]}",
        remedy="Its settings or files are not what the library expects: copy or download it again, or set "
        "model.config to correct a value.",
        trace="".join(traceback.format_exception(error)),
    )


def _missing_weights_remedy(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        return f"It holds pickled weights ({pickles[0]}), which can run code and are refused. {CONVERT}"
    return f"It holds: {', '.join(sorted(path.name for path in folder.iterdir())[:12]) or 'nothing'}"


def _causes(error: BaseException | None) -> Sequence[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
