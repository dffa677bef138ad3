"""Proves what the table of a GPU rests on: a job's result, nothing left of a job whose time is up, and the verdicts."""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from torch.autograd import DeviceType

from benchmarks.gpu.__main__ import Bench, chosen, prepare
from benchmarks.gpu.jobs import Job, Running
from benchmarks.gpu.make import SHAPES, make_model, make_rows, parameters
from benchmarks.gpu.ours import IMAGES, measured
from benchmarks.gpu.profiling import _kernels, covered
from benchmarks.gpu.report import write
from benchmarks.gpu.rows import CPU, GPU, Asked, Row, faster, flops_per_token
from benchmarks.gpu.rows import make_rows as rows_of
from benchmarks.gpu.sampler import summary

CHILD = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"


def job(tmp_path, code, **rest):
    return Job("job", [sys.executable, "-c", code], tmp_path / "job.log", **rest)


def test_a_result_is_the_last_line_that_is_marked(tmp_path):
    code = 'print("noise"); print(\'RESULT {"a": 1}\'); print(\'RESULT {"a": 2}\'); print("bye")'
    assert job(tmp_path, code).run(20) == {"a": 2}


def test_a_job_that_fails_says_its_last_line(tmp_path):
    assert job(tmp_path, "raise SystemExit('no such file')").run(20) == {"not run": "exit code 1: no such file"}


def test_nothing_is_left_of_a_job_whose_time_is_up(tmp_path):
    result = job(tmp_path, CHILD).run(1.0)
    assert result["not run"].startswith("killed after 1 s")
    child = int((tmp_path / "job.log").read_text())
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the job's child lives")


RANK = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
LAUNCHER = f"""
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}], start_new_session=True, stdout=subprocess.PIPE)
rank.stdout.readline()
print(rank.pid, flush=True)
time.sleep(60)
"""


def test_ranks_in_sessions_of_their_own_that_ignore_signals_are_killed_too(tmp_path):
    path = tmp_path / "job.log"
    job(tmp_path, LAUNCHER, watch=lambda: {} if path.read_text().strip() else None).run(30)
    child = int(path.read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def bench(tmp_path, seconds, peak=None):
    return Bench(tmp_path / "out.log", tmp_path / "samples.csv", time.monotonic() + seconds, 30.0, peak)


def filled_row():
    return {"name": "row", "title": "a row", "sides": {}}


def test_a_row_for_which_no_time_is_left_says_so(tmp_path):
    never, filled = job(tmp_path, "raise SystemExit(1)"), filled_row()
    row = Row("row", "a row", [], {"ours": never, "peer": never}, faster(1.0))
    bench(tmp_path, 3).fill(row, ["ours", "peer"], filled, {}, list)
    assert filled["sides"] == {side: {"not run": "no time left"} for side in ("ours", "peer")}


def test_a_row_whose_data_could_not_be_made_says_so(tmp_path):
    maker, never, filled = (
        job(tmp_path, "raise SystemExit('disk full')"),
        job(tmp_path, "raise SystemExit(1)"),
        filled_row(),
    )
    made = prepare([[maker], [maker]], 30)
    bench(tmp_path, 60).fill(
        Row("row", "a row", [maker], {"ours": never, "peer": never}, faster(1.0)), ["ours"], filled, made, list
    )
    assert filled["sides"] == {"ours": {"not run": "exit code 1: disk full"}}


def test_what_prepares_runs_in_order_and_once(tmp_path):
    path = tmp_path / "order"

    def note(name, code=""):
        command = [sys.executable, "-c", f"open({str(path)!r}, 'a').write({name!r}); {code}"]
        return Job(name, command, tmp_path / f"{name}.log", salvage=lambda: {"made": name})

    fails = job(tmp_path, "raise SystemExit('disk full')")
    made = prepare(
        [[note("a", "import time; time.sleep(0.3)"), note("b")], [note("a"), note("b")], [fails, note("c")]], 30
    )
    assert path.read_text() == "ab"
    assert made["c"] == made["job"] == {"not run": "exit code 1: disk full"}


def test_the_last_lines_of_a_job_that_fails_are_kept(tmp_path):
    fails = job(tmp_path, "print('one'); print('two', flush=True); raise SystemExit('three')")
    bench(tmp_path, 60).fill(
        Row("row", "a row", [], {"ours": fails, "peer": fails}, faster(1.0)), ["ours"], filled_row(), {}, list
    )
    assert (tmp_path / "out.log").read_text().endswith("one\ntwo\nthree\n")


def test_a_result_is_salvaged_when_the_time_is_up(tmp_path):
    assert job(tmp_path, CHILD, salvage=lambda: {"timed": 1}).run(0.5) == {"timed": 1}


def test_a_watched_job_ends_with_what_is_seen(tmp_path):
    began = time.monotonic()
    assert job(tmp_path, CHILD, watch=lambda: {"seen": 1}).run(30) == {"seen": 1}
    assert time.monotonic() - began < 10


def test_our_side_is_read_from_the_journal(tmp_path):
    rows = [
        {
            "step": step,
            "split": "train",
            "time": 100 + 2.0 * step,  # a quarter of each second is spent between steps
            "step_seconds": 1.5,
            "units_per_second": 40.0,
            "positions_per_second": 1000.0 if step % 2 else 800.0,
            "loss": 1.0,
            "memory_bytes": 7 + (step == 1),
        }
        for step in range(1, 17)
    ]
    journal = tmp_path / "metrics.jsonl"
    assert measured(journal, 14) is None
    journal.write_text("\n".join(map(json.dumps, rows[:13])) + '\n{"step"')
    assert measured(journal, 14) is None
    journal.write_text("\n".join(map(json.dumps, rows)))
    result = measured(journal, 14)
    # 1,500 and 1,200 tokens in turns, in 2 seconds each
    assert (result["step_seconds"], result["tokens_per_second"], result["peak_bytes"]) == (2.0, 675.0, 8)
    assert measured(journal, 14, IMAGES)["tokens_per_second"] == 30.0
    journal.write_text("\n".join(json.dumps(row) for row in rows if row["step"] in (1, 4, 8, 12)))  # log_every: 4
    assert measured(journal, 12, IMAGES)["tokens_per_second"] == 30.0


WAITS = """
from benchmarks.gpu.jobs import tell, wait_for_turn
print("imported", flush=True)
wait_for_turn()
tell(tokens_per_second=1, peak_bytes=1, step_seconds=1)
"""


def test_a_job_that_is_started_early_waits_for_its_turn(tmp_path):
    early = job(tmp_path, WAITS, early=True)
    running = Running(early)
    for _ in range(400):
        if "imported" in early.last_lines(5):
            break
        time.sleep(0.05)
    assert early.last_lines(5) == "imported"
    assert running.result(20)["step_seconds"] == 1


def test_sides_that_wait_are_started_with_the_row_and_ended_with_it(tmp_path):
    first = Job("first", [sys.executable, "-c", WAITS], tmp_path / "first.log")
    second = Job("second", [sys.executable, "-c", WAITS], tmp_path / "second.log", early=True)
    filled, row = filled_row(), Row("row", "a row", [], {"ours": first, "peer": second}, faster(1.0))
    bench(tmp_path, 60).fill(row, ["ours", "peer"], filled, {}, list)
    assert filled["sides"]["ours"]["verdict"] == "met: 1.00 x (goal 1.00)" and "imported" in second.last_lines(5)
    bench(tmp_path, 3).fill(row, ["ours", "peer"], filled_row(), {}, list)  # no time is left: it never has its turn
    assert "RESULT" not in second.last_lines(5)


def side(rate, peak=1):
    return {"tokens_per_second": rate, "peak_bytes": peak, "step_seconds": 1.0}


def test_verdicts():
    assert faster(1.25)({"ours": side(130), "peer": side(100)}) == (True, "1.30 x (goal 1.25)")
    assert not faster(1.25)({"ours": side(120), "peer": side(100)})[0]
    assert not faster(1.0, memory=1.0)({"ours": side(130, 11), "peer": side(100, 10)})[0]


@pytest.mark.parametrize("sizes", [CPU, GPU])
def test_every_row_of_the_table_is_there(tmp_path, sizes):
    rows = rows_of(tmp_path, sizes)
    assert [row.name for row in rows] == [
        "full-fp32-masters", "full-bf16", "lora-8b", "lora-8b-stored", "packed",
        "loss-head", "loss-head-large", "resnet-50", "vit-b",
    ]  # fmt: skip
    assert all(len(row.sides) >= 2 and next(iter(row.sides)).startswith("ours") for row in rows)
    assert [row.name for row in chosen(rows, ["packed", "full-bf16", "packed"])] == ["packed", "full-bf16"]
    with pytest.raises(SystemExit, match="no such row: other"):
        chosen(rows, ["other"])


def test_nothing_is_saved_or_evaluated_while_steps_are_timed(tmp_path):
    rows_of(tmp_path, GPU)
    recipes = [json.loads(path.read_text()) for path in tmp_path.glob("*.yaml")]
    assert len(recipes) == 7
    for recipe in recipes:
        ends = recipe["training"]["steps"]
        assert recipe["checkpoint"]["every"] == recipe["evaluation"]["every"] == ends > 5 * GPU.steps


def test_our_side_is_changed_and_run_again_as_the_command_line_says(tmp_path):
    asked = Asked(["parallel.micro_batch=1"], [["model.compile=layers"]], tmp_path / "out")
    row = rows_of(tmp_path, CPU, asked)[1]
    sides = row.sides
    assert list(sides) == ["ours", "TRL + Liger", "ours model.compile=layers"]
    command = sides["ours model.compile=layers"].command
    sets = [value for flag, value in pairwise(command) if flag == "--set"]
    assert sets == ["parallel.micro_batch=1", "model.compile=layers", f"data.capacity={CPU.length}"]
    assert str(tmp_path / "out-full-bf16-1.profile.txt") in command
    assert len(row.prepare) == 2  # both are trained on the same data


def test_data_is_prepared_once_for_what_shapes_it(tmp_path):
    rows = rows_of(tmp_path, CPU, Asked(variants=[["data.capacity=64"], ["model.compile=layers"]]))
    by_name = {row.name: [job.name for job in row.prepare] for row in rows}
    made = f"make-tiny-{CPU.micro_batch * CPU.accumulation * (CPU.steps + 3)}-full-64"
    whole = [made, f"{made}, prepared", f"{made}, prepared data.capacity=64"]
    assert by_name["full-bf16"] == by_name["full-fp32-masters"] == whole


def test_floating_point_operations_of_a_token():
    assert (parameters("1b"), parameters("8b")) == (1_235_814_400, 8_030_261_248)
    frozen = flops_per_token("8b", 4096, frozen=True)
    assert 12_473 * frozen["4N"] == pytest.approx(402e12, rel=0.01)  # NeMo AutoModel's figures, both of them
    hidden, vocabulary, layers = SHAPES["8b"][0], SHAPES["8b"][6], SHAPES["8b"][2]
    looked_up, attention = 4 * hidden * vocabulary, 6 * layers * hidden * 4096
    assert frozen["products"] == frozen["4N"] - looked_up + attention
    assert flops_per_token("1b", 4096, frozen=False)["6N"] == 6 * parameters("1b")


def test_the_model_has_as_many_parameters_as_are_counted(tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    make_model(tmp_path, "tiny")
    make_rows(tmp_path, "tiny", 3, "full", 64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters("tiny")
    texts = [json.loads(line)["text"] for line in (tmp_path / "full-3-64.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(texts)["input_ids"]
    assert [len(row) for row in ids] == [63] * 3 and tokenizer.unk_token_id not in ids[0]
    assert tokenizer.eos_token_id == model.config.eos_token_id


def test_samples_of_an_idle_gpu_do_not_count(tmp_path):
    path = tmp_path / "samples.csv"
    path.write_text("1980, 30, 70.0, 99\n")
    before = path.stat().st_size
    with path.open("a") as file:
        file.write("345, 31, 70.0, 0\n1755, 60, 690.5, 100\n1740, 66, 695.0, 97\n1710, 64, 699.0, 98\n[N/A], 1, 2\n17")
    assert summary(path, before) == {"sm_mhz": 1740.0, "celsius": 66.0, "watts": 695.0}
    assert summary(path, path.stat().st_size) == {}


def test_a_profile_says_which_kernels_take_the_time_and_how_long_there_is_none():
    def event(name, start, end, device=DeviceType.CUDA, annotation=False):
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=annotation)

    events = [
        event("gemm", 0.0, 3000.0), event("norm", 3000.0, 4000.0), event("gemm", 5000.0, 8000.0),
        event("step", 0.0, 10000.0, annotation=True), event("Context Sync", 0.0, 10000.0),
        event("aten::mm", 0.0, 10000.0, device=DeviceType.CPU),
    ]  # fmt: skip
    lines = _kernels(events, 0.010).splitlines()
    assert lines[0] == "3 kernels, 7.0 ms; the device had none for 30.0% of the step"
    assert (
        lines[1].split() == ["6.00", "ms", "85.7%", "2", "x", "gemm"] and lines[2].endswith("norm") and len(lines) == 3
    )


def test_kernels_that_overlap_count_once():
    assert covered([(5.0, 9.0), (0.0, 2.0), (1.0, 3.0), (6.0, 7.0)]) == 7.0


def test_a_row_is_written_as_far_as_it_got(tmp_path):
    good = job(tmp_path, 'print(\'RESULT {"tokens_per_second": 9, "peak_bytes": 1, "step_seconds": 1}\')')
    row = Row("row", "a row", [], {"ours": good, "TRL + Liger": job(tmp_path, "")}, faster(1.0))
    filled = filled_row()
    machine = {"device": "none", "versions": {"torch": "2", "trl": None}}
    report = {"machine": machine, "matmul": {}, "rows": [filled]}
    out = tmp_path / "out"
    bench(tmp_path, 30).fill(row, list(row.sides), filled, {}, lambda: write(report, out))
    assert json.loads(Path(tmp_path / "out.json").read_text())["rows"][0]["sides"]["ours"]["tokens_per_second"] == 9
    assert "| a row | ours | 9 per second" in (tmp_path / "out.md").read_text()
    assert "verdict" not in filled["sides"]["ours"] and "not run" in filled["sides"]["TRL + Liger"]


def test_variants_of_our_side_are_judged_too(tmp_path):
    def gives(name, rate):
        line = f'RESULT {{"tokens_per_second": {rate}, "peak_bytes": 1, "step_seconds": 1}}'
        return Job(name, [sys.executable, "-c", f"print({line!r})"], tmp_path / f"{name}.log")

    sides = {"ours": gives("a", 90), "peer": gives("b", 100), "ours x=1": gives("c", 120)}
    filled = filled_row()
    bench(tmp_path, 60).fill(Row("row", "a row", [], sides, faster(1.0)), list(sides), filled, {}, list)
    verdicts = [result.get("verdict") for result in filled["sides"].values()]
    assert verdicts == ["missed: 0.90 x (goal 1.00)", None, "met: 1.20 x (goal 1.00)"]
