"""Tables and pictures as W&B gets them: of bounded size, and what is left out is reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from finetune.tracking.atomic_files import plain
from finetune.tracking.class_names import class_names
from finetune.tracking.example_history import boxes_of, sample_predictions
from finetune.tracking.run import Run
from finetune.units import format_number

MAX_ROWS, MAX_COLUMNS = 1_000, 200
MAX_CHARACTERS = 2_000  # of a cell
MAX_SAMPLED, MAX_EVALUATIONS = 100, 100  # examples of an evaluation in tables/predictions, and evaluations
MAX_PICTURES = 32  # of a table
PIXELS = 640  # of the longer side of a picture
CLEAR = 0.5  # score from which a detection is drawn
PICTURE = "picture"  # the column that names a file

Boxes = Mapping[str, Any]  # {"boxes": [[x, y, width, height]], "labels": [class], "scores": [0..1]}, in pixels


class TableLog:
    """Logs the tables of one run; reports once what it leaves out of a table. The mirror's thread calls it, but for `bound`."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self.say = say
        self._run = run
        self._said: set[str] = set()
        self._predictions: Any = None  # the incremental table
        self._evaluations = 0

    def bound(self, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """What of a table's rows waits in the queue."""
        return [list(row[:MAX_COLUMNS]) for row in rows[:MAX_ROWS]]

    def log(
        self, wandb_run: Any, name: str, step: int | None, columns: Sequence[Any], rows: list[list[Any]], count: int
    ) -> None:
        """Log `tables/NAME`, and `pictures/NAME` if its rows name image files. count: of the rows before `bound`."""
        import wandb

        table, cut = make_table(wandb, columns, rows, count)
        if cut:
            self._say_once(f"tables/{name}", f"W&B: tables/{name} has {cut}; {self._run.tables} has all of it")
        values: dict[str, Any] = {f"tables/{name}": table, **({} if step is None else {"step": step})}
        pictures = self._pictures(wandb, name, step, columns, rows)
        if pictures:  # next to the table: a table of mixed types cannot contain media
            values[f"pictures/{name}"] = pictures
        wandb_run.log(values, step=step)

    def log_predictions(self, wandb_run: Any, step: int) -> None:
        """Add the predictions of an evaluation for a sample of its examples, the same ones each time, to
        `tables/predictions`: an incremental table, of which only the new rows are sent.
        """
        import wandb

        if self._evaluations >= MAX_EVALUATIONS:
            reason = f"the predictions of the first {MAX_EVALUATIONS} evaluations only; {self._run.predictions} has all"
            return self._say_once("predictions", f"W&B: tables/predictions has {reason}")
        found = sample_predictions(self._run.predictions / f"validation-step-{step:08d}.jsonl", MAX_SAMPLED)
        if found is None:
            return None
        columns: list[Any] = ["step", *found[0]]
        rows = [[step, *map(_cell, row)] for row in found[1]]
        if self._predictions is None:
            self._predictions = wandb.Table(columns=columns, allow_mixed_types=True, log_mode="INCREMENTAL")
        names = self._predictions.columns
        for row in rows:
            cells = dict(zip(columns, row, strict=True))
            self._predictions.add_data(*(cells.get(name, "") for name in names))
        self._evaluations += 1
        wandb_run.log({"tables/predictions": self._predictions, "step": step}, step=step)
        return None

    def _pictures(
        self, wandb: Any, name: str, step: int | None, columns: Sequence[Any], rows: Sequence[Sequence[Any]]
    ) -> list[Any]:
        """Where a row names the size that boxes refer to, the boxes of its predictions are drawn by W&B. On pictures of other
        rows they are drawn already.
        """
        found = [(path, cells, str(cells.get("id", ""))) for path, cells in find_pictures(self._run, columns, rows)]
        sized = {int(id) for _, cells, id in found if id.isdigit() and _size_of(cells) is not None}
        boxes: dict[int, dict[str, Boxes]] = {}
        if sized and step is not None:
            split = "test" if name.startswith("test_") else "validation"
            boxes = boxes_of(self._run.predictions / f"{split}-step-{step:08d}.jsonl", sized)
        names = class_names(self._run) if boxes else []
        made = [
            make_picture(wandb, path, cells, boxes.get(int(id), {}) if id in map(str, boxes) else {}, names)
            for path, cells, id in found
        ]
        return [picture for picture in made if picture is not None]

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self.say(text)


def make_table(wandb: Any, columns: Sequence[Any], rows: Sequence[Sequence[Any]], count: int) -> tuple[Any, str]:
    """(wandb.Table, what was left out: "" for nothing). count: of all rows, of which `rows` are the first."""
    kept = [[_cell(value) for value in row[:MAX_COLUMNS]] for row in rows[:MAX_ROWS]]
    table = wandb.Table(columns=[str(name) for name in columns[:MAX_COLUMNS]], data=kept, allow_mixed_types=True)
    cut = count > MAX_ROWS or len(columns) > MAX_COLUMNS
    sizes = f"{format_number(count, 'row')} and {format_number(len(columns), 'column')}"
    return table, f"{sizes}, of which W&B gets the first {MAX_ROWS:,} and {MAX_COLUMNS:,}" if cut else ""


def _cell(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        return f"{value[:MAX_CHARACTERS]}… ({len(value) - MAX_CHARACTERS:,} more characters)"
    return value


def find_pictures(run: Run, columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[tuple[Path, dict[str, Any]]]:
    """(file, cells) of the rows that name a picture of the run; [] for a table without. At most MAX_PICTURES.

    Only files in predictions/pictures/ count: a row must not have a file of somebody's disk uploaded by naming it.
    """
    names = [str(name) for name in columns]
    if PICTURE not in names:
        return []
    at = names.index(PICTURE)
    found = [(_inside(run, row[at]), dict(zip(names, row, strict=False))) for row in rows[: 4 * MAX_PICTURES]]
    return [(path, cells) for path, cells in found if path is not None][:MAX_PICTURES]


def _inside(run: Run, name: Any) -> Path | None:
    """The file below pictures/ of this run that a cell names; the run may have been moved since."""
    parts = Path(name).parts if isinstance(name, str) else ()
    if len(parts) < 2 or "pictures" not in parts or ".." in parts:
        return None
    folder = run.predictions / "pictures"
    path = folder.joinpath(*parts[len(parts) - parts[::-1].index("pictures") :])
    try:
        inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a text that is no path
        return None
    return path if inside else None


def make_picture(
    wandb: Any, path: Path, cells: Mapping[str, Any], boxes: Mapping[str, Boxes], names: Sequence[str]
) -> Any | None:
    """A wandb.Image, made small, captioned with the other cells of its row; None for a file that cannot be read.

    boxes: "predictions" and "ground_truth", which W&B draws and switches on and off. names: of the classes.
    """
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (PIXELS, PIXELS))
            small = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    small.thumbnail((PIXELS, PIXELS))
    size = _size_of(cells)
    shown = [f"{name}: {_cell(value)}" for name, value in cells.items() if name != PICTURE]
    drawn = {kind: _boxes(one, size, names) for kind, one in boxes.items()} if size is not None else {}
    return wandb.Image(small, caption=", ".join(shown)[:MAX_CHARACTERS], boxes=drawn or None)


def _size_of(cells: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) that the boxes of a row refer to: "640x480" in its column "size"."""
    wide, _, high = str(cells.get("size", "")).partition("x")
    return (int(wide), int(high)) if wide.isdigit() and high.isdigit() else None


def _boxes(found: Boxes, size: tuple[int, int], names: Sequence[str]) -> dict[str, Any]:
    """As wandb.Image takes them: corners as fractions of the image. Those of ground truth have no score."""
    wide, high = max(size[0], 1), max(size[1], 1)
    scores = found.get("scores") or [None] * len(found["boxes"])
    drawn = []
    for (x, y, width, height), label, score in zip(found["boxes"], found["labels"], scores, strict=True):
        if score is not None and score < CLEAR:
            continue
        corners = {"minX": x / wide, "maxX": (x + width) / wide, "minY": y / high, "maxY": (y + height) / high}
        name = names[label] if label < len(names) else str(label)
        one = {
            "position": corners,
            "class_id": int(label),
            "box_caption": name if score is None else f"{name} {score:.2f}",
        }
        drawn.append(one if score is None else {**one, "scores": {"score": float(score)}})
    return {"box_data": drawn, "class_labels": dict(enumerate(names))}
