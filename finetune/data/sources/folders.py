"""Chooses the files of a folder that belong to a split: training never reads files that are named for another one."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from finetune.data.columns import nearest_name
from finetune.data.formats import coco, yolo_yaml
from finetune.data.formats.compression import without_compression
from finetune.data.formats.registry import format_by_content, format_of
from finetune.data.sources.folder_contents import (
    METADATA,
    FolderContents,
    Groups,
    declared_groups,
    group_by_split,
    holds_data,
    read_folder,
)
from finetune.data.sources.located import Located, display_path, listed
from finetune.data.split_names import split_of
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

SPLITS = ("train", "validation", "test")


def locate_in_folder(folder: Path, source: SourceSection, name: str) -> Located:
    """The files of a folder for the split `name` (a key of the recipe; others only where there is no choice).

    Known layouts: a data.yaml of YOLO; files or subfolders named by split, with or without a folder `data`; save_to_disk of
    `datasets`; `configs:` in README.md; subfolders of classes (imagefolder), within folders of splits or without.
    Raises: UserError if the folder has no files for the split, or none of the requested format.
    """
    if (described := _described_by_yolo(folder, source)) is not None:
        return locate_yolo(described, source, name)
    declared = declared_groups(folder, source.subset)
    if declared is not None:
        groups, said_in = declared
        chosen, left, notes = _choose(groups, folder, source, name)
        if len(chosen) == 1 and chosen[0].is_dir():
            return _whole(chosen[0], source, notes, left)
        if not chosen:
            raise UserError(
                f"{said_in} names files for this split, but none of them is there",
                where=display_path(folder),
                remedy="Copy them as well, or give the files themselves.",
            )
        chosen, twins = distinct(chosen)
        said = f"{display_path(folder)}: {said_in} names the files of each split"
        return Located(same_format(folder, chosen, source.format), tuple(chosen), (said, *notes, *twins), left)
    folder = _subset(folder, source)
    contents = read_folder(folder, source.format)
    if coco.find_annotations(folder) is None and not contents.files:
        if folder / "data" in contents.folders and holds_data(folder / "data"):
            folder = folder / "data"
            contents = read_folder(folder, source.format)
        elif (splits := _split_folders(contents, source)) is not None:
            chosen, left, notes = _choose(splits, folder, source, name)
            return _whole(chosen[0], source, notes, left)
    return _from_contents(folder, contents, source, name)


def _described_by_yolo(folder: Path, source: SourceSection) -> Path | None:
    """The data.yaml of a folder that has no annotations in COCO format, which say more."""
    if source.subset or source.format not in ("auto", "yolo"):
        return None
    return yolo_yaml.find_yaml(folder) if source.format == "yolo" or coco.find_annotations(folder) is None else None


def locate_yolo(path: Path, source: SourceSection, name: str) -> Located:
    """The split of a data.yaml. Raises: UserError if it has none for `name`."""
    described = yolo_yaml.read_yaml(path)
    split = described.choose(source.split or name)
    left = tuple(key for key in described.splits if key != split)
    places = zip(described.splits[split], described.places(split), strict=True)
    images = ", ".join(
        text if place == described.root / text else f"{text}, found in {display_path(place)}" for text, place in places
    )
    others = f"; left to other splits: {', '.join(left)}" if left else ""
    return Located("yolo", (path,), (f"{display_path(path)}: {split} ({images}) is read{others}",), left, split)


def _subset(folder: Path, source: SourceSection) -> Path:
    if not source.subset:
        return folder
    if (folder / source.subset).is_dir():
        return folder / source.subset
    names = [path.name for path in read_folder(folder, source.format).folders]
    near = nearest_name(source.subset, names)
    raise UserError(
        f"has no subset {source.subset!r}" + (f"; did you mean {near}?" if near else ""),
        where=display_path(folder),
        remedy="A subset of a local folder is a subfolder, or an entry of `configs:` in README.md.",
    )


def _split_folders(contents: FolderContents, source: SourceSection) -> Groups | None:
    """The subfolders by split, if they are splits: all of them are named so, train and another one are, one holds data, or
    `split:` names one.
    """
    exact = {split_of(path.name) for path in contents.folders} - {""}
    groups = group_by_split(contents.folders)
    named = [path for label, paths in groups.items() if label for path in paths]
    if source.split in (path.name for path in contents.folders):
        return {path.name: [path] for path in contents.folders}
    if named and (
        len(named) == len(contents.folders)
        or ("train" in exact and len(exact) > 1)
        or any(_is_split(path) for path in named)
    ):
        several = next((paths for label, paths in groups.items() if label and len(paths) > 1), None)
        return groups if several is None else {path.name: [path] for path in contents.folders}
    return None


def _is_split(folder: Path) -> bool:
    return holds_data(folder) or coco.find_annotations(folder) is not None


def _whole(folder: Path, source: SourceSection, notes: tuple[str, ...], left: tuple[str, ...]) -> Located:
    """All files of the folder of a split."""
    found = _from_contents(folder, read_folder(folder, source.format), source, "")
    return Located(found.format, found.files, (*notes, *found.notes), left)


def _from_contents(folder: Path, contents: FolderContents, source: SourceSection, name: str) -> Located:
    """The files for a split; all of them for "". Raises: UserError as locate_in_folder does."""
    requested = source.format
    if requested in ("auto", "coco") and (annotations := coco.find_annotations(folder)) is not None:
        return Located("coco", (annotations,))
    if requested == "coco":
        jsons = [path for path in contents.unread if format_of(path) == "json"]
        if len(jsons) == 1:
            return Located("coco", (jsons[0],))
    if requested == "imagefolder" or (requested == "auto" and not contents.files and not _nested(contents)):
        if source.split and name:
            raise UserError(
                f"has no split {source.split!r}: its subfolders are not named by split",
                where=display_path(folder),
                remedy="Remove `split:`, or give another folder.",
            )
        return Located("imagefolder", (folder,))
    if not contents.files:
        raise UserError(
            f"contains no {'data' if requested == 'auto' else requested} file",
            where=display_path(folder),
            remedy=_nested(contents) or "Give the file itself, or another folder.",
        )
    chosen, left, notes = _choose(contents.groups, folder, source, name) if name else (contents.files, (), ())
    chosen, twins = distinct(chosen)
    notes = (*notes, *twins, *_unread(folder, contents, chosen, bool(left)))
    return Located(same_format(folder, chosen, requested), tuple(chosen), notes, left)


def _nested(contents: FolderContents) -> str:
    """What to do about data files in subfolders that are not named by split; "" if there are none."""
    names = [path.name for path in contents.folders if holds_data(path)]
    if not names:
        return ""
    return f"Data files are in its subfolders ({listed(names)}): give one, or a pattern such as {names[0]}/*, or `subset:`."


def _choose(
    groups: Groups, folder: Path, source: SourceSection, name: str
) -> tuple[list[Path], tuple[str, ...], tuple[str, ...]]:
    """(files or folder of the split, labels of other splits, notes). Raises: UserError if there is no choice."""
    label = _label(groups, folder, source, name)
    left = tuple(other for other in groups if other != label)
    if not left:
        return groups[label], (), ()
    used = listed([path.name for path in groups[label]])
    others = listed([path.name for other in left for path in groups[other]])
    verb = "is" if len(groups[label]) == 1 else "are"
    return groups[label], left, (f"{display_path(folder)}: {used} {verb} read; left to other splits: {others}",)


def _label(groups: Groups, folder: Path, source: SourceSection, name: str) -> str:
    """The key of `groups` that a split has. Raises: UserError if none or several do."""
    named = [label for label in groups if label]
    where, wanted = display_path(folder), source.split or name
    matches = [label for label in named if label == wanted] or [
        label for label in named if label.lower() == wanted.lower() or split_of(label) == (split_of(wanted) or None)
    ]
    if len(matches) == 1:
        return matches[0]
    if len(matches) > 1:
        raise UserError(
            f"has several splits for {wanted}: {', '.join(matches)}", where=where, remedy="Set `split:` to one of them."
        )
    if source.split:
        by_stem = _stems(groups.get("", []))
        if source.split in by_stem:
            groups[source.split] = by_stem[source.split]
            groups[""] = [path for path in groups[""] if path not in by_stem[source.split]]
            return source.split
        known = [*named, *by_stem]
        near = nearest_name(source.split, known)
        raise UserError(
            f"has no split {source.split!r}" + (f"; did you mean {near}?" if near else ""),
            where=where,
            remedy=f"It has {listed(known)}." if known else "Remove `split:`.",
        )
    if not named or (name == "train" and "" in groups):
        return ""
    if name not in SPLITS and len(groups) == 1:
        return named[0]
    files = [path.name for paths in groups.values() for path in paths]
    what = (
        f"has no files for {name}, but {listed(files)}" if name in SPLITS else f"has several splits: {', '.join(named)}"
    )
    remedy = f"Set `split:`, or give a file of the split itself, such as {display_path(groups[named[0]][0])}."
    raise UserError(what, where=where, remedy=remedy)


def _stems(paths: list[Path]) -> dict[str, list[Path]]:
    stems: dict[str, list[Path]] = {}
    for path in paths:
        stems.setdefault(without_compression(path).stem, []).append(path)
    return stems


def distinct(paths: list[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """(files without those that are links to another one, notes)."""
    first: dict[tuple[int, int], Path] = {}
    notes = []
    for path in paths:
        stat = path.stat()
        same = first.setdefault((stat.st_dev, stat.st_ino), path)
        if same is not path:
            notes.append(f"{display_path(path)} is the same file as {display_path(same)}; it is read once")
    return list(first.values()), tuple(notes)


def _unread(folder: Path, contents: FolderContents, chosen: list[Path], is_told: bool) -> list[str]:
    """A note on what is not read, and on how many files are, if there are several."""
    where = display_path(folder)
    notes = [f"{where}: {listed([path.name for path in chosen])} are read"] if len(chosen) > 1 and not is_told else []
    by_list = any(path.stem.lower() == "metadata" for path in chosen)  # which names the images beside it
    rest = [
        path.name
        for path in contents.unread
        if path.name not in METADATA and not (by_list and str(mimetypes.guess_type(path.name)[0]).startswith("image/"))
    ] + [f"{path.name}/" for path in contents.folders if holds_data(path)]
    if contents.num_hidden:
        rest.append(f"{contents.num_hidden} hidden")
    return [*notes, f"{where}: not read: {listed(rest)}"] if rest else notes


def same_format(where: Path, files: list[Path], requested: str) -> str:
    """The one format of files, by their extensions if `requested` is auto. Raises: UserError if there are several."""
    formats = sorted({format_by_content(file) for file in files}) if requested == "auto" else [requested]
    if len(formats) > 1 or not formats[0]:
        raise UserError(
            f"contains files of several formats: {', '.join(name or 'unknown' for name in formats)}",
            where=display_path(where),
            remedy="Choose one with `format:`, or list each as a separate source.",
        )
    return formats[0]
