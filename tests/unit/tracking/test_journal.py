"""metrics.jsonl survives a crash, a resume and a full disk: no row twice, none torn, none lost."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.tracking.journal import Journal, cut, list_tables, read_rows, read_table
from finetune.tracking.run import Run

ROOT = Path(__file__).parents[3]


def start(run, step=0):
    journal = Journal(run)
    journal.started(start_step=step, total_steps=100, steps_per_epoch=10, facts={})
    return journal


def steps(run):
    return [row["step"] for row in read_rows(run.metrics_file)]


def test_rows_are_strict_json_in_the_order_told(run):
    journal = start(run)
    journal.row({"step": 1, "split": "train", "loss": np.float32(0.5), "grad_norm": math.nan, "name": "é\ud800"})
    journal.row({"step": 2, "split": "train", "loss": math.inf})
    lines = run.metrics_file.read_bytes().splitlines()
    assert "é".encode() in lines[0]  # readable, and the lone surrogate did not stop the write

    def refuse(word):
        raise AssertionError(f"not JSON: {word}")

    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert rows[0] == {"step": 1, "split": "train", "loss": 0.5, "grad_norm": None, "name": "é\ud800"}
    assert rows[1]["loss"] is None


def test_a_resume_cuts_later_rows_and_tables_and_mends_a_torn_line(run):
    journal = start(run)
    for step in range(1, 9):
        journal.row({"step": step, "split": "train"})
        journal.table("per_class", step=step, columns=["a"], rows=[[step]])
    with run.metrics_file.open("ab") as file:
        file.write(b'{"step": 5, "spl')  # the machine died here
    journal = start(run, step=5)
    assert steps(run) == [1, 2, 3, 4, 5]
    assert [step for _, _, step in list_tables(run.tables)] == [1, 2, 3, 4, 5]
    journal.row({"step": 6, "split": "train"})
    assert steps(run) == [1, 2, 3, 4, 5, 6]


def test_an_evaluation_that_is_done_again_is_cut_with_what_comes_after_it(run):
    journal = start(run)
    for step in (4, 5, 6):
        journal.row({"step": step, "split": "train"})
        journal.row({"step": step, "split": "validation"})
    cut(run.metrics_file, 5, evaluated=False)
    assert [(row["step"], row["split"]) for row in read_rows(run.metrics_file)] == [
        (4, "train"),
        (4, "validation"),
        (5, "train"),
    ]


def test_a_start_from_the_beginning_drops_all_former_rows(run):
    journal = start(run)
    journal.row({"step": 0, "split": "validation"})
    journal.table("samples", step=0, columns=["a"], rows=[])
    start(run, step=0)
    assert steps(run) == [] and list_tables(run.tables) == []


def test_a_torn_last_line_is_passed_over_while_reading(run):
    run.metrics_file.write_bytes(b'{"step": 1}\n[1]\n{"step": 2}\n{"step": 3}')
    assert steps(run) == [1, 2]
    assert [row["step"] for row in read_rows(run.metrics_file, limit_bytes=14)] == [1]
    assert list(read_rows(run.path / "absent.jsonl")) == []


def test_tables_keep_columns_and_rows(run):
    journal = start(run)
    journal.table("confusion_matrix", step=100, columns=("reference", "a"), rows=[("a", np.int64(3))])
    path = run.tables / "confusion_matrix-step-00000100.json"
    assert list_tables(run.tables) == [(path, "confusion_matrix", 100)]
    assert read_table(path) == (["reference", "a"], [["a", 3]])


def test_a_full_disk_is_told_with_the_file(run):
    run.metrics_file.symlink_to("/dev/full")
    journal = Journal(run)
    journal._handle = os.open(run.metrics_file, os.O_WRONLY | os.O_APPEND)  # `started` would replace the link
    with pytest.raises(FinetuneError, match="No space left") as error:
        journal.row({"step": 1})
    assert error.value.where == str(run.metrics_file) and error.value.exit_code == 1


def test_a_row_that_does_not_fit_leaves_no_torn_line(run):
    """The size of files is limited by the kernel, so that half of the second line is written before it refuses."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from finetune.errors import FinetuneError\n"
        "from finetune.tracking.journal import Journal\n"
        "from finetune.tracking.run import Run\n"
        "journal = Journal(Run.open(Path(sys.argv[1])))\n"
        "journal.started(start_step=0, total_steps=9, steps_per_epoch=9, facts={})\n"
        "journal.row({'step': 1, 'text': 'x' * 50})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "try: journal.row({'step': 2, 'text': 'x' * 50})\n"
        "except FinetuneError as error: print(error.what); sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, run.path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 7 and "File too large" in done.stdout, done.stderr
    assert run.metrics_file.read_bytes().count(b"\n") == 1 and run.metrics_file.read_bytes().endswith(b"\n")


def test_rows_told_before_a_sudden_death_are_on_the_disk(recipe, tmp_path):
    run = Run.create(recipe, tmp_path)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from finetune.tracking.journal import Journal\nfrom finetune.tracking.run import Run\n"
        "journal = Journal(Run.open(Path(sys.argv[1])))\n"
        "journal.started(start_step=0, total_steps=9, steps_per_epoch=9, facts={})\n"
        "for step in range(1, 8): journal.row({'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, run.path], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert steps(run) == [1, 2, 3, 4, 5, 6, 7] and run.trainer is None


def test_lines_with_numbers_that_nothing_can_hold_are_passed_over(run):
    big = "9" * 400
    lines = ['{"step": 1}', f'{{"step": {big}}}', f'{{"step": 2, "loss": {big}}}', '{"step": 1e400}', '{"step": "x"}']
    run.metrics_file.write_text("".join(line + "\n" for line in [*lines, '{"step": -1}', '{"step": 3}']))
    assert steps(run) == [1, 3]


@pytest.mark.parametrize(
    "value",
    [[], {}, {"columns": ["a"], "rows": [1]}, {"columns": ["a"], "rows": [[1, 2]]}, {"columns": [1], "rows": [[1]]}],
)
def test_a_table_of_another_shape_is_none(run, value):
    path = run.tables / "x-step-00000001.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"not a table|do not have one value"):
        read_table(path)
