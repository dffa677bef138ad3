"""W&B as a mirror of the journal: it may be late or incomplete, and training neither waits for it nor fails because of it.

All calls to wandb are made from a queue by a separate thread: a server that hangs blocks that thread, not training. If
the server cannot be reached, the run is recorded offline in the run folder, to be synced later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.metrics.catalogue import CATALOGUE
from finetune.recipe.recipe import Recipe
from finetune.recipe.secrets import mask
from finetune.terminal import printable
from finetune.tracking.atomic_files import plain
from finetune.tracking.background import Background
from finetune.tracking.example_history import example_history
from finetune.tracking.journal import list_tables, read_rows, read_table
from finetune.tracking.run import Run, shown
from finetune.tracking.wandb_lineage import record_inputs, record_model

INIT_SECONDS = 20.0  # how long the thread waits for a server before it records offline
FINISH_SECONDS = 60.0  # how long the end of training waits for uploads at most
MAX_REPLAYED = 50_000  # rows logged again into a new W&B segment after a resume
MAX_TABLE_ROWS = 1_000

_NOT_FIGURES = ("step", "epoch", "split", "time")


_DISTRIBUTIONS = ("lengths", "class_balance")  # facts that are no columns for a table of runs


class WandbMirror:
    """A Listener. Mode `auto`: online if there is an API key (environment, netrc), otherwise offline.

    say: called with one line for the user (from the mirror's thread). The W&B run has the run's own id, kept in run.json,
    so a resumed run continues the same W&B run. A row {"step", "split": "validation", "loss"} becomes "validation/loss"
    at that step. After a resume the rows that W&B lacks are logged again from metrics.jsonl: online those after the last
    step that the server has; offline all of them, so that the newest offline folder alone is complete.
    """

    def __init__(self, run: Run, recipe: Recipe, say: Callable[[str], None] = print) -> None:
        self._run, self._recipe, self._say = run, recipe, say
        self._background = Background("wandb-mirror", self._report)
        self._wandb: Any = None  # wandb's Run, once it is open

    def started(self, *, start_step: int, total_steps: int, steps_per_epoch: int, facts: Mapping[str, Any]) -> None:
        if self._recipe.tracking.wandb == "off" or os.environ.get("WANDB_MODE") == "disabled":
            return
        size = self._run.metrics_file.stat().st_size if start_step and self._run.metrics_file.is_file() else 0
        tables = [path for path, _, step in list_tables(self._run.tables) if start_step and step <= start_step]
        self._background.start()
        self._later(lambda: self._open(dict(facts)))
        if start_step:
            self._later(lambda: self._replay(size, tables))

    def step(self, *, step: int, epoch: float, progress: Mapping[str, float]) -> None:
        """Not logged: rows are mirrored, not every step."""

    def row(self, row: Mapping[str, float | int | str]) -> None:
        copy = dict(row)
        self._later(lambda: self._log(copy))

    def table(self, name: str, *, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        kept = [list(row) for row in rows[:MAX_TABLE_ROWS]]
        self._later(lambda: self._log_table(name, step, list(columns), kept))

    def checkpoint(self, path: Path, *, step: int, best: bool) -> None:
        def note() -> None:
            self._wandb.summary["best_checkpoint" if best else "latest_checkpoint"] = path.name

        self._later(note)

    def message(self, text: str) -> None:
        """Not logged: messages are for the console."""

    def finished(self, *, status: str, summary: Mapping[str, Any]) -> None:
        """Close the W&B run; waits for uploads, for about a minute at most."""
        if not self._background.running:
            return
        figures = mask(plain(dict(summary)))
        self._later(lambda: self._tell_end(status, figures))
        self._later(lambda: self._close(status, figures))
        if not self._background.finish(FINISH_SECONDS + 5):
            self._say(f"W&B did not finish within {FINISH_SECONDS:.0f} s; its files are in {self._run.path / 'wandb'}")

    def _later(self, call: Callable[[], None]) -> None:
        self._background.later(call)

    def _report(self, error: Exception) -> None:
        reason = str(mask(f"{type(error).__name__}: {error}")).splitlines()[0]
        self._say(f"W&B is disabled, training continues ({reason})")

    def _open(self, facts: dict[str, Any]) -> None:
        if "wandb" not in sys.modules:
            os.environ.pop("WANDB_SERVICE", None)  # of the process that started this one; it may end first
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # otherwise it prints the account in use
        mode = self._recipe.tracking.wandb
        online = mode in ("auto", "online") and os.environ.get("WANDB_MODE", "online") == "online"
        if online and not has_key(wandb):
            online = False
            if mode == "online":
                self._say("W&B: no API key in WANDB_API_KEY or netrc (`wandb login` stores one); recording offline")
        if online:
            try:
                self._wandb = self._init(wandb, "online", facts)
            except Exception as error:
                reason = str(mask(str(error))).splitlines()[0] if str(error) else type(error).__name__
                self._say(f"W&B cannot be reached ({reason}); recording offline")
                wandb.teardown()  # its service still has the run's id open
        if self._wandb is None:
            self._wandb = self._init(wandb, "offline", facts)
        self._report_location()
        record_inputs(wandb, self._wandb, self._run, self._recipe)

    def _init(self, wandb: Any, mode: str, facts: dict[str, Any]) -> Any:
        tracking = self._recipe.tracking
        run = wandb.init(
            dir=str(self._run.path),
            id=self._run.read().get("wandb", {}).get("id") or _agents_id() or self._run.id,
            name=printable(display_name(self._recipe)),
            project=tracking.project,
            entity=tracking.entity or None,
            group=printable(tracking.group or self._recipe.name),
            job_type="train",
            tags=list(map(printable, tracking.tags)) or None,
            resume="allow",
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, disable_git=True
            ),
        )
        data = {
            split: {"rows": record["rows"], "digest": record.get("content", "")}
            for split, record in (self._run.read().get("data") or {}).items()
        }
        few = {key: value for key, value in facts.items() if key not in _DISTRIBUTIONS}
        known = {"facts": mask(plain(few)), "data_digests": data}
        run.config.update({**shown(self._recipe), **known}, allow_val_change=True)
        run.define_metric("step")
        for split in ("train", "validation", "test"):
            run.define_metric(f"{split}/*", step_metric="step")
        for name, best in self._directions().items():  # the runs table then sorts by the best value, not by the last
            run.define_metric(f"validation/{name}", step_metric="step", summary=best)
        return run

    def _directions(self) -> dict[str, str]:
        """Whether the smallest ("min") or the largest value is best, of the loss and the metrics of the recipe."""
        evaluation = self._recipe.evaluation
        found: dict[str, str] = {"loss": "min"}
        for name in evaluation.metrics or ():
            if name in CATALOGUE and (better := CATALOGUE[name].direction) is not None:
                found[name] = better
        if evaluation.best and evaluation.best_mode != "auto":
            found[evaluation.best] = evaluation.best_mode
        return found

    def _report_location(self) -> None:
        folder = Path(self._wandb.dir).parent
        address = "" if self._wandb.offline else (self._wandb.url or "")
        self._run.update(
            wandb={"id": self._wandb.id, "folder": str(folder.relative_to(self._run.path)), "url": address}
        )
        self._say(f"W&B: {address}" if address else f"W&B offline; to upload it later: wandb sync {folder}")

    def _replay(self, size: int, tables: Sequence[Path]) -> None:
        """Log what W&B lacks, by ascending step: `size` bytes of metrics.jsonl, as it was when training resumed."""
        known = self._wandb.step if not self._wandb.offline else 0
        waiting = [table for table in list_tables(self._run.tables) if table[0] in tables and table[2] >= known]
        for count, row in enumerate(read_rows(self._run.metrics_file, size)):
            step = int(row.get("step", 0))
            if count >= MAX_REPLAYED:
                self._say(
                    f"W&B: only the first {MAX_REPLAYED:,} earlier rows were logged again; metrics.jsonl has all of them"
                )
                break
            while waiting and waiting[0][2] < step:
                self._log_file(*waiting.pop(0))
            if step >= known:
                self._log(row)
        for table in waiting:
            self._log_file(*table)

    def _log_file(self, path: Path, name: str, step: int) -> None:
        columns, rows = read_table(path)
        self._log_table(name, step, columns, rows[:MAX_TABLE_ROWS])

    def _log(self, row: Mapping[str, Any]) -> None:
        step, split = int(row["step"]), row.get("split", "train")
        figures = {key: value for key, value in plain(row).items() if key not in _NOT_FIGURES and value is not None}
        values = {f"{split}/{key}": value for key, value in figures.items()}
        own = {"step": step, "epoch": row.get("epoch"), "_timestamp": row.get("time")}
        self._wandb.log({**values, **{key: value for key, value in own.items() if value is not None}}, step=step)

    def _log_table(self, name: str, step: int, columns: list[Any], rows: list[list[Any]]) -> None:
        import wandb

        values: dict[str, Any] = {"step": step}
        values[f"tables/{name}"] = wandb.Table(columns=columns, data=plain(rows), allow_mixed_types=True)
        pictures = _pictures(columns, rows)
        if pictures:  # next to the table: a table of mixed types cannot contain media
            values[f"pictures/{name}"] = [wandb.Image(str(path), caption=caption) for path, caption in pictures]
        self._wandb.log(values, step=step)

    def _tell_end(self, status: str, summary: dict[str, Any]) -> None:
        """The examples over all evaluations, the model as an artifact, and an alert where the recipe asks for it."""
        import wandb

        history = example_history(self._run)
        if history is not None:
            columns, rows = history
            table = wandb.Table(columns=[*columns], data=plain(rows), allow_mixed_types=True)
            self._wandb.log({"tables/examples": table})
        if status == "done":
            record_model(wandb, self._wandb, self._run, self._recipe, summary)
        if status in self._recipe.tracking.alerts:
            text = str(summary.get("failure") or f"{self._recipe.name}, run {self._run.id}")
            level = "ERROR" if status == "failed" else "INFO"
            self._wandb.alert(title=f"{self._recipe.name}: {status}", text=text, level=level)

    def _close(self, status: str, summary: dict[str, Any]) -> None:
        self._wandb.summary.update({"status": status, **summary})
        self._wandb.finish(exit_code=1 if status == "failed" else 0)


def display_name(recipe: Recipe) -> str:
    """The recipe and what usually differs between its runs: "quickstart lr=0.0003 batch=32 epochs=2 seed=42"."""
    training = recipe.training
    length = f"steps={training.steps}" if training.steps else f"epochs={training.epochs:g}" if training.epochs else ""
    adapter = f"{recipe.adapter.kind}={recipe.adapter.rank}" if recipe.adapter is not None else ""
    rate = f"lr={training.learning_rate:g}"
    return " ".join(
        filter(None, [recipe.name, rate, f"batch={training.global_batch}", length, adapter, f"seed={recipe.seed}"])
    )


def _pictures(columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[tuple[Path, str]]:
    """(file, caption) of the images that a table's column "picture" names; missing files are skipped."""
    if "picture" not in columns:
        return []
    at = list(columns).index("picture")
    files = [(Path(str(row[at])), row) for row in rows]
    return [
        (path, ", ".join(str(cell) for index, cell in enumerate(row) if index != at))
        for path, row in files
        if path.is_file()
    ]


def _agents_id() -> str:
    """The id that the agent of a W&B sweep gives to the run that it started; "" without an agent."""
    return os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""


def has_key(wandb: Any) -> bool:
    """Whether there is an API key in the environment, or in netrc for the server that wandb is configured for."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from wandb.sdk.lib.wbauth import read_netrc_auth

    return bool(read_netrc_auth(host=wandb.setup().settings.base_url))
