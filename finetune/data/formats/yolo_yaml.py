"""The data.yaml of a YOLO data set (Ultralytics): names of classes, and where the images of each split are.

    path: ../datasets/cells        # optional: the folder that the others are relative to
    train: images/train            # a folder, a text file that lists images, or a list of both
    val: images/val
    names: {0: RBC, 1: WBC}        # or a list

No address in it is opened, and no code of it (`download:`) is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.data.columns import nearest_name
from finetune.data.formats.compression import unreadable
from finetune.data.split_names import split_of
from finetune.errors import UserError

NAME = "data.yaml"
EXTENSIONS = (".yaml", ".yml")
MAX_BYTES = 1 << 20
_SETTINGS = ("path", "names", "nc", "download", "yaml_file", "kpt_shape", "flip_idx", "channels")
_REMEDY = "docs/your-data.md, YOLO, has an example."


@dataclass(frozen=True)
class DataYaml:
    """names: number of a class -> its name. splits: key -> files and folders of images, as they are written.

    root: the folder that relative ones are looked for in. keypoints: numbers after the box in a line of labels.
    notes: what to report of how it is read.
    """

    file: Path
    names: Mapping[int, str]
    splits: Mapping[str, tuple[str, ...]]
    root: Path
    keypoints: int = 0
    notes: tuple[str, ...] = ()

    def choose(self, wanted: str) -> str:
        """The key of the split that `wanted` names, such as val for validation. "": the only one.

        Raises: UserError if there is none, or no choice.
        """
        found = [key for key in self.splits if key == wanted]
        found = found or [key for key in self.splits if split_of(key) and split_of(key) == split_of(wanted)]
        if not wanted and len(self.splits) == 1:
            found = list(self.splits)
        if len(found) == 1:
            return found[0]
        known = ", ".join(self.splits)
        if not wanted:
            raise UserError(
                f"has several splits: {known}",
                where=str(self.file),
                remedy="Set `split:` to one of them, or give the images of one alone, such as "
                f"{self.places(list(self.splits)[-1])[0]}.",
            )
        near = nearest_name(wanted, self.splits)
        raise UserError(
            f"has no images for {wanted}, but for {known}" + (f"; did you mean {near}?" if near else ""),
            where=str(self.file),
            remedy="Set `split:` to one of these, or add it to the file.",
        )

    def places(self, split: str) -> list[Path]:
        """The folders and lists of images of a split. Raises: UserError if one is not there."""
        return [self._place(split, text) for text in self.splits[split]]

    def _place(self, split: str, text: str) -> Path:
        """Beside data.yaml as well, and ../train/images as train/images: exporters write what their users unpack elsewhere."""
        folders = dict.fromkeys((self.root, self.file.parent))
        texts = (text, text[3:]) if text.startswith("../") else (text,)
        tried = [folder / name for name in texts for folder in folders]
        for place in tried:
            if place.exists():
                return place
        raise UserError(
            f"{split}: {text} is not there",
            where=str(self.file),
            remedy=f"Looked for {' and '.join(map(str, dict.fromkeys(tried)))}. Correct `path` or `{split}` in the file.",
        )


def is_yolo(path: Path) -> bool:
    """Whether a .yaml file describes a YOLO data set: it has names or a number of classes, and images of a split."""
    try:
        content = _load(path)
    except UserError:
        return False
    return ("names" in content or "nc" in content) and bool(_splits(content))


def find_yaml(folder: Path) -> Path | None:
    """The file that describes the data set in a folder: data.yaml, or the only one of its kind; else None."""
    if is_yolo(folder / NAME):
        return folder / NAME
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in EXTENSIONS and is_yolo(path)]
    return found[0] if len(found) == 1 else None


def read_yaml(path: Path) -> DataYaml:
    """Raises: UserError for a file that cannot be read, has no splits, or classes whose names cannot be told apart."""
    content = _load(path)
    splits = _splits(content)
    if not splits:
        raise UserError("names no images: it has neither train nor val", where=str(path), remedy=_REMEDY)
    root, notes = _root(path, content.get("path"))
    keypoints = content.get("kpt_shape")
    counts = keypoints if isinstance(keypoints, list) and all(isinstance(one, int) for one in keypoints) else []
    per_box = counts[0] * counts[1] if len(counts) == 2 else 0
    return DataYaml(path, _names(path, content), splits, root, per_box, notes)


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError("is too large for a data.yaml", where=str(path), remedy=_REMEDY)
        content = yaml.safe_load(path.read_text("utf-8-sig"))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise UserError(
            f"not YAML: {getattr(error, 'problem', None) or 'it cannot be parsed'}",
            where=where,
            remedy="Fix the syntax.",
        ) from error
    if not isinstance(content, dict):
        raise UserError("does not describe a YOLO data set", where=str(path), remedy=_REMEDY)
    return {str(key): value for key, value in content.items()}


def _splits(content: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The keys whose values are paths, in order; of keys that name no split (minival) as well."""
    found = {}
    for key, value in content.items():
        texts = value if isinstance(value, list) else [value]
        if key not in _SETTINGS and texts and all(isinstance(text, str) and text.strip() for text in texts):
            found[key] = tuple(text.strip() for text in texts)
    return found if any(split_of(key) for key in found) else {}


def _root(path: Path, written: Any) -> tuple[Path, tuple[str, ...]]:
    """(the folder of the data set, notes): `path:`, relative to the file; the file's own where that is not there."""
    home = path.parent
    if not isinstance(written, str) or not written.strip():
        return home, ()
    root = home / written.strip()
    if root.is_dir():
        return root, ()
    return home, (f"`path: {written.strip()}` is not there; images are looked for beside the file",)


def _names(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Number -> name, of a list or a mapping; class_0, class_1, ... where there is only their number."""
    names, count = content.get("names"), content.get("nc")
    if names is None and isinstance(count, int) and 0 < count < 1_000_000:
        names = [f"class_{number}" for number in range(count)]
    entries = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(entries, dict) or not entries:
        raise UserError("names no classes", where=str(path), remedy="Write `names:` as a list, or as {0: cat, 1: dog}.")
    found: dict[int, str] = {}
    for number, name in entries.items():
        if isinstance(number, bool) or not str(number).isdecimal() or not isinstance(name, (str, int)):
            raise UserError(f"names: {number!r}: {name!r} is not the number and the name of a class", where=str(path))
        found[int(number)] = str(name).strip()
    if isinstance(count, int) and count != len(found):
        raise UserError(
            f"nc is {count}, but names has {len(found)} classes", where=str(path), remedy="Make them agree."
        )
    twice = next((name for name in found.values() if not name or list(found.values()).count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"two classes have the name {twice!r}" if twice else "a class has an empty name",
            where=str(path),
            remedy="Give each class a name of its own.",
        )
    return found
