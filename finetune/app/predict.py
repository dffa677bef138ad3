"""`finetune predict`: answers for new data, on any number of ranks, in the order of the rows, resumed after any end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress

from finetune.app.asked_replicas import predict_with_replicas
from finetune.app.launch_plan import check_count
from finetune.app.model_places import check_places
from finetune.app.predict_options import PredictOptions, check_replicas, split_option
from finetune.distributed.launch import Launch
from finetune.distributed.replicas import NoReplicaLeft
from finetune.distributed.watching import run_workers
from finetune.errors import TrainingFailed, UserError
from finetune.inference.prediction.deaths import forget_whereabouts, note_deaths
from finetune.inference.prediction.manifest import check_output
from finetune.inference.prediction.output_name import check_output_name
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.state import State
from finetune.recipe.machine import count_gpus
from finetune.terminal import print_line, print_over_progress
from finetune.units import format_number


def predict(*, options: PredictOptions) -> None:
    """Start the ranks. Several replicas are launches of their own: one that fails is started again alone. A single one, or the
    process that reads for several, ends all by its failure, and all are started again: what is answered stays. A start that
    has answered something gives back the restarts that were used up before it.

    Raises: UserError for an output of another command and for a model or data that cannot be used; Halted for a full disk
    or too many bad rows; TrainingFailed when restarts are used up.
    """
    parts = Parts(options.output.absolute())
    check_output(parts)
    check_output_name(options.output)
    check_places(options.model, options.data, options.read)
    launch = Launch(options.arguments(), _processes(options), deepspeed=False, cpu=count_gpus() == 0)
    restarts, reached = options.restarts, _reached(parts)
    while True:
        deaths = _Deaths(parts)
        forget_whereabouts(parts)
        try:
            _run(launch, options, parts, deaths)
            return
        except NoReplicaLeft:
            raise
        except TrainingFailed as error:
            before, reached = reached, _reached(parts)
            if deaths.gained or reached > before:
                restarts = options.restarts
            if restarts <= 0 or not parts.manifest.exists():
                raise
            restarts -= 1
            cause = ": ".join(filter(None, (error.where, error.what)))
            print_line(f"{cause}\nrestarting ({format_number(restarts, 'restart')} left)")
        except KeyboardInterrupt:
            print_line(f"what is answered stays in {options.output}; the same command goes on")
            raise
        except UserError:
            _remove_unused(parts)
            raise


def _run(launch: Launch, options: PredictOptions, parts: Parts, deaths: _Deaths) -> None:
    """One start of all ranks."""
    if launch.processes > options.replica_size:
        predict_with_replicas(launch, options.replica_size, parts, restarts=options.restarts, gpus_each=options.layers)
    else:
        run_workers(
            launch,
            parts.logs,
            lambda line: None,
            notify_meanwhile=print_over_progress,
            ends_at_once=True,
            tell_dead=deaths.note,
        )


class _Deaths:
    """Remembers at which rows ranks died. gained: rows were answered alone in this start, so the device works."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.gained = parts, False

    def note(self, dead: Sequence[int]) -> None:
        lines, self.gained = note_deaths(self.parts, dead)
        for line in lines:
            print_line(line)


def _reached(parts: Parts) -> tuple[int, int]:
    """How far the output is: it grows whenever a chunk is answered."""
    state = State.read(parts.state)
    return state.windows, len(list(parts.folder.glob("window-*/*.answers")))


def _processes(options: PredictOptions) -> int:
    """Raises: UserError for more processes than GPUs, or for processes that make no whole replica."""
    gpus, size, layers = count_gpus(), options.replica_size, options.layers
    if layers > 1 and gpus < layers:
        raise UserError(f"{layers} of {gpus} GPUs", where="--layers", remedy="Give no more GPUs than there are.")
    fitting = max(1, gpus // layers // size) * size
    count = options.processes or fitting
    check_count(count, "--processes")
    check_replicas(count, options)
    if gpus and size > gpus:
        option = split_option(options)
        raise UserError(f"{size} {option[2:]} on {gpus} GPUs", where=option, remedy=f"Use at most {gpus}.")
    if gpus and count * layers > gpus:
        raise UserError(
            f"{count} processes on {gpus} GPUs" + (f", {layers} for each" if layers > 1 else ""),
            where="--processes",
            remedy=f"At most one process per GPU: --processes {fitting}. The answers are the same.",
        )
    return count


def _remove_unused(parts: Parts) -> None:
    """Of an output that was refused or never begun, no folder is left behind."""
    if parts.folder.is_dir() and not parts.manifest.exists():
        shutil.rmtree(parts.logs, ignore_errors=True)
        (parts.folder / "lock").unlink(missing_ok=True)
        with suppress(OSError):
            parts.folder.rmdir()
