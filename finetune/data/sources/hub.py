"""Datasets of the Hugging Face hub: downloaded, or found in its cache, and read in place as Arrow files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

from finetune.data.sources.arrow_files import cache_table, map_arrow
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.recipe.user_path import near_path


def fetch_hub(source: SourceSection, split: str, notify: Callable[[str], None]) -> list[Path]:
    """The Arrow files of one split of a hub dataset. Code that comes with a dataset is never run.

    split: used if the source names none. notify: is called with a progress line.
    Raises: UserError if the dataset cannot be reached, or has no such subset or split.
    """
    import datasets

    offline = not _hub_reachable()
    offline_before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline_before or offline  # without a network, its retries take half a minute
    notify(f"{source.source}: {'reading from the hub cache' if offline else 'downloading from the hub'}")
    try:
        dataset = datasets.load_dataset(
            source.source, source.subset or None, split=source.split or split, revision=source.revision
        )
    except Exception as error:  # of many undocumented types
        raise _as_user_error(source, source.split or split, error) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline_before
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    if files and map_arrow(files).num_rows == len(dataset):
        return files  # otherwise the split is a slice of its files, such as train[:10%]
    schema_metadata = dataset.features.arrow_schema.metadata
    table = dataset.data.table.replace_schema_metadata(schema_metadata)
    return [cache_table("hub", dataset._fingerprint, lambda: table)]


def _hub_reachable() -> bool:
    """Whether the host name of the hub resolves. Behind a proxy this cannot be tried, so True is assumed."""
    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlparse(hub.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _as_user_error(source: SourceSection, split: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    name = source.source + (f"/{source.subset}" if source.subset else "")
    if isinstance(error, (ConnectionError, TimeoutError)) and "doesn't exist" not in reason:
        return UserError(
            f"the dataset {name} is not in the local Hugging Face cache, and the hub cannot be reached",
            where="data",
            remedy=f"{near_path(source.source)}Download it on a machine with a network and copy its HF_HOME, or use a local "
            "file or folder, builtin:docstrings or builtin:digits.",
        )
    if "Unknown split" in reason or "subset" in reason.lower() or "config" in reason.lower():
        return UserError(
            f"the dataset {name} has no split {split!r}: {reason}", where="data", remedy="Set `split:` and `subset:`."
        )
    return UserError(
        f"the dataset {name} cannot be opened: {type(error).__name__}: {reason}",
        where="data",
        remedy="Check the name on the hub. Gated datasets need `hf auth login`; datasets with a loading script are "
        "not supported.",
    )
