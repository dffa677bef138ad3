"""Images as examples of their tiles: cut by size alone, decoded once by each rank that answers some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.images import Picture, image_size, read_image
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row
from finetune.inference.answering import PIECE, Outcome, Part
from finetune.inference.pieces.box_merging import merge_boxes
from finetune.inference.pieces.merging import Answers, merge_class_scores, merge_outcomes
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.spans import check_count
from finetune.inference.pieces.tiles import Window, count_tiles, cut_image
from finetune.inference.whole_rows import ROW, WITH_TARGETS, WholeRows
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer
from finetune.tasks.class_outputs import name_of
from finetune.tasks.object_detection.data import Reading, detection_transform, objects_in_pixels, usable_objects
from finetune.tasks.object_detection.descriptions import count_clear
from finetune.tasks.task import Encoded, Task, check_target
from finetune.tasks.text.inputs import encode_each
from finetune.tasks.vision.boxes import Objects, crop

MOST_KEPT = 64  # images
CUT = "the image is larger than a tile; it is answered in tiles"


@dataclass(frozen=True)
class _Decoded:
    """An image, or why it cannot be decoded, and the value that it was decoded from."""

    value: Any
    picture: Picture | BadRow

    @property
    def pixels(self) -> int:
        return 0 if isinstance(self.picture, BadRow) else self.picture.rgb.width * self.picture.rgb.height


class ImageTiles:
    """See RowSplitter. Images that are larger than a tile are cut; others stay whole rows.

    A piece holds the row and its window. `load` decodes an image when its first tile comes, and keeps it until another
    image comes: tiles of an image are neighbors in a chunk, as all cost the same, so memory holds one decoded image and the
    tiles of one chunk. kept_pixels: of further images that are kept, for tiles that come in turns.
    """

    kept_pixels = 0

    def __init__(self, task: Task, artifacts: TaskArtifacts, options: PieceOptions) -> None:
        assert options.tile is not None
        self.task, self.artifacts, self.options = task, artifacts, options
        self.whole = WholeRows(task, artifacts)
        self._kept: list[_Decoded] = []  # the one that was used last is the last one

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": []}

    def split(self, rows: Sequence[Row], *, with_targets: bool) -> list[list[dict[str, Any]] | BadRow]:
        """The tiles of each image; reads no more than the headers of the files."""
        return encode_each(rows, lambda row: self._split(row, with_targets))

    def _split(self, row: Row, with_targets: bool) -> list[dict[str, Any]]:
        width, height = image_size(row.get("image"), self.artifacts.options.value_range)
        options = self.options
        assert options.tile is not None and options.overlap is not None
        check_count(count_tiles(width, height, options.tile, options.overlap), options.most_pieces)
        windows = cut_image(width, height, options.tile, options.overlap, whole_image=bool(options.whole_image))
        if not windows:
            (example,) = self.whole.split([row], with_targets=with_targets)
            if isinstance(example, BadRow):
                raise example
            return example
        if with_targets:
            check_target(self.task, self.artifacts, row)
        kept = {role: row[role] for role in (*self.task.card.rows.columns, "width", "height") if role in row}
        tiles: list[dict[str, Any]] = [
            {ROW: kept, WITH_TARGETS: with_targets, PIECE: _piece(index, len(windows), window, (width, height))}
            for index, window in enumerate(windows)
        ]
        tiles[0][NOTICES] = [CUT]
        return tiles

    def load(self, examples: Sequence[dict[str, Any]]) -> list[Encoded]:
        """Images and tiles decoded."""
        return encode_each(examples, self._load)

    def _load(self, example: Mapping[str, Any]) -> dict[str, Any]:
        if PIECE not in example:
            (encoded,) = self.whole.load([dict(example)])
        else:
            picture = self._decode(example[ROW].get("image"))
            width, height = example[PIECE]["size"]
            if picture.rgb.size != (width, height):
                raise BadRow(f"the image was {width} x {height} pixels when it was cut, and now is another")
            encoded = self._encode(example[ROW], picture, example[PIECE]["window"], example[WITH_TARGETS])
        if isinstance(encoded, BadRow):
            raise encoded
        return {**encoded, **{key: example[key] for key in ("id", PIECE) if key in example}}

    def forget(self) -> None:
        """Free the images that are kept."""
        self._kept = []

    def _decode(self, value: Any) -> Picture:
        """Raises: BadRow for an image that cannot be decoded, which is tried once for all of its tiles."""
        found = next((one for one in self._kept if one.value is value or _is_equal(one.value, value)), None)
        if found is None:
            room = self.kept_pixels
            while sum(one.pixels for one in self._kept) > room or len(self._kept) >= MOST_KEPT:
                del self._kept[0]  # its memory is free before the next image is decoded
            found = _Decoded(value, self._read(value))
        else:
            self._kept.remove(found)
        self._kept.append(found)
        if isinstance(found.picture, BadRow):
            raise found.picture
        return found.picture

    def _read(self, value: Any) -> Picture | BadRow:
        try:
            return read_image(value, self.artifacts.options.value_range)
        except BadRow as bad:
            return bad.with_traceback(None)

    def _encode(self, row: Row, picture: Picture, window: Sequence[int], with_targets: bool) -> Encoded:
        tile = {**row, "image": cut_out(picture, window)}
        return self.task.encode(self.artifacts, [tile], with_targets=with_targets)[0]

    def merge(self, row: int, parts: Sequence[Part]) -> Outcome:
        """Scores of the tiles as one."""
        return merge_outcomes(parts, self._merge)

    def _merge(self, answers: Answers) -> Answer:
        first = answers[0][1]
        prediction, scores = merge_class_scores(
            [answer.values["scores"] for _, answer in answers],
            [piece["share"] for piece, _ in answers],
            self.options.merge or "mean",
            several=False,
        )
        shown = {**first.shown, "predicted": name_of(prediction, self.artifacts.labels)}
        return Answer(first.id, {**first.values, "prediction": prediction, "scores": scores}, shown)


class DetectionTiles(ImageTiles):
    """Tiles whose answers are boxes."""

    def _encode(self, row: Row, picture: Picture, window: Sequence[int], with_targets: bool) -> Encoded:
        """With targets, "objects" are those of the whole image, which the merged boxes are compared with."""
        if not with_targets:
            return super()._encode(row, picture, window, with_targets)
        import numpy as np

        objects = usable_objects(row, picture, Reading.of(self.artifacts), skip=False)
        corners, kept = crop(np.array(objects.corners, np.float64).reshape(-1, 4), window)
        inside = np.flatnonzero(kept)
        part = Objects(
            corners[inside].tolist(), [objects.labels[i] for i in inside], [objects.crowd[i] for i in inside]
        )
        tile = cut_out(picture, window)
        transform = detection_transform(self.artifacts, augment="none", seed=0)
        example = {**transform(tile, part, 0), "size": list(tile.size), "place": ""}
        return {**example, "objects": objects_in_pixels(objects)}

    def _merge(self, answers: Answers) -> Answer:
        first, (piece, _) = answers[0][1], answers[0]
        tiles = [(_window(piece), answer.values["detections"]) for piece, answer in answers]
        assert self.options.max_boxes is not None
        detections = merge_boxes(tiles, tuple(piece["size"]), self.options.max_boxes)
        shown = {**first.shown, "predicted": count_clear(self.artifacts, detections)}
        return Answer(first.id, {**first.values, "detections": detections}, shown)


def cut_out(picture: Picture, window: Sequence[int]) -> Any:
    """The part of a decoded image; the image itself, not a copy, for a window of all of it."""
    left, top, right, bottom = window
    if (left, top, right, bottom) == (0, 0, *picture.rgb.size):
        return picture.rgb
    return picture.rgb.crop((left, top, right, bottom))


def _piece(index: int, count: int, window: Window, size: tuple[int, int]) -> dict[str, Any]:
    left, top, right, bottom = window.corners
    is_whole = (left, top, right, bottom) == (0, 0, *size)
    place = f"left {left}, top {top}, {right - left} x {bottom - top} pixels"
    name = "the whole image" if is_whole else f"tile {index + 1} of {count} ({place})"
    return {
        "index": index,
        "count": count,
        "name": name,
        "window": list(window.corners),
        "share": window.share,
        "size": list(size),
    }


def _window(piece: Mapping[str, Any]) -> Window:
    left, top, right, bottom = piece["window"]
    return Window(left, top, right, bottom, piece["share"])


def _is_equal(one: Any, other: Any) -> bool:
    """Whether two values of an image column are the same path or bytes. Arrays and images are compared by identity."""
    return isinstance(one, (str, bytes, dict)) and type(one) is type(other) and bool(one == other)
