"""Sets of the Hugging Face hub: fetched, or found in its cache, and then read as Arrow files in place."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

from finetune.data.sources.arrow_rows import keep_table, map_arrow
from finetune.errors import UserError
from finetune.recipe.data import SourceSection


def fetch_hub(source: SourceSection, split: str, notify: Callable[[str], None]) -> list[Path]:
    """The Arrow files of one split of a hub set. No code that comes with a set is run.

    Raises: UserError if the hub or the set cannot be reached, or has no such subset or split.
    """
    import datasets

    offline = not _hub_in_sight()
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline  # no half a minute of retries without a network
    notify(f"{source.source}: {'looking in the hub cache' if offline else 'fetching from the hub'}")
    try:
        found = datasets.load_dataset(
            source.source, source.subset or None, split=source.split or split, revision=source.revision
        )
    except Exception as error:  # its many kinds say little; the reason and the remedy say more
        raise _as_user_error(source, source.split or split, error) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    files = [Path(entry["filename"]) for entry in found.cache_files]
    if files and map_arrow(files).num_rows == len(found):
        return files
    described = found.features.arrow_schema.metadata  # a part of its files, such as train[:10%]
    table = found.data.table.replace_schema_metadata(described)
    return [keep_table("hub", found._fingerprint, lambda: table)]


def _hub_in_sight() -> bool:
    """Whether the hub's name resolves; through a proxy nobody can tell, so: yes."""
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
            f"the set {name} lies on the Hugging Face hub, which cannot be reached, and is not in its cache here",
            where="data",
            remedy="Fetch it where there is a network (HF_HOME carries it over), or name a local file or folder, or "
            "builtin:docstrings or builtin:digits.",
        )
    if "Unknown split" in reason or "subset" in reason.lower() or "config" in reason.lower():
        return UserError(
            f"the set {name} cannot give split {split!r}: {reason}", where="data", remedy="Set `split:` and `subset:`."
        )
    return UserError(
        f"the set {name} cannot be opened: {type(error).__name__}: {reason}",
        where="data",
        remedy="Check the name on the hub; a gated set needs `hf auth login`; sets that are scripts are not run.",
    )
