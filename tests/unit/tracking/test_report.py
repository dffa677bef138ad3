"""report.html: self-contained, escaped, right figures; from a half-done run, from 200,000 rows, from odd files."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from finetune.app.report import report
from finetune.errors import UserError
from finetune.tracking.journal import Journal, read_rows
from finetune.tracking.report import write_report
from finetune.tracking.report.charts import Line, draw_chart
from finetune.tracking.report.curves import draw_charts
from finetune.tracking.run import Run
from finetune.tracking.series import Series, collect_series, smooth, thin
from tests.browser import Browser, find_chromium
from tests.unit.tracking.conftest import make_recipe

EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"
FACTS = {
    "model": "org/m", "parameters": 22_713_216, "ranks": 2, "device": "cpu", "unit": "example", "precision": "fp32",
    "examples": {"train": 640, "validation": 80}, "skipped": 3, "versions": {"torch": "2.99"},
}  # fmt: skip


class Page(HTMLParser):
    """Tags, their attributes, and the text a person would read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self._inside = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data):
        if "style" not in self._inside:
            self.text += f" {data}"

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def begin(run: Run) -> Journal:
    journal = Journal(run)
    journal.started(start_step=0, total_steps=20, steps_per_epoch=10, facts=FACTS)
    return journal


def train_row(step: int) -> dict:
    figures = {
        "loss": 2 / step,
        "learning_rate": 1e-5,
        "grad_norm": 1.0,
        "units_per_second": 1500.0,
        "step_seconds": 0.5,
    }
    return {"step": step, "epoch": step / 10, "split": "train", **figures, "time": 0.0}


def whole_run(run: Run) -> None:
    journal = begin(run)
    columns = ["when", "id", "input", "expected", "predicted"]
    journal.table("samples", step=0, columns=columns, rows=[["before", 4, EVIL, "yes", "nonsense words"]])
    for step in range(1, 21):
        journal.row(train_row(step))
        if step % 10 == 0:
            accuracy = {10: 0.75, 20: 0.625}[step]
            row = {"step": step, "epoch": step / 10, "split": "validation", "loss": 1 / step, "accuracy": accuracy}
            journal.row({**row, EVIL: 0.5})
            matrix = [[EVIL, 3, 1], ["dog", 0, 4]] if step == 10 else [[EVIL, 0, 4], ["dog", 2, 2]]
            journal.table("confusion_matrix", step=step, columns=["reference", EVIL, "dog"], rows=matrix)
            classes = [[EVIL, 1.0, 0.75, 0.8571, 4], ["dog", 0.8, 1.0, 0.8889, 4]]
            journal.table(
                "per_class", step=step, columns=["label", "precision", "recall", "f1", "support"], rows=classes
            )
            worst = [[7, 3.21 if step == 10 else 8.76, "dog", 1, 0, EVIL, "text " * 500, None]]
            names = ["id", "loss", "label", "prediction", "reference", "predicted", "text", "more"]
            journal.table("worst_examples", step=step, columns=names, rows=worst)
            folder = run.checkpoints / f"step-{step:08d}"
            folder.mkdir()
            (folder / "manifest.json").write_text("x" * 2048)
            (run.checkpoints / "latest").write_text(folder.name)
    (run.checkpoints / "best").write_text("step-00000010")
    (run.checkpoints / "step-00000030.incomplete").mkdir()
    journal.table("samples", step=20, columns=columns, rows=[["after", 4, EVIL, "yes", "a good reply"]])
    journal.finished(status="done", summary={"best_metric": "accuracy"})


def test_a_whole_run_shows_its_figures(run):
    whole_run(run)
    path = report(run.path)
    assert path == run.path / "report.html"
    page = Page(path)
    for part in (
        "✓ done", "best accuracy 0.7500 after epoch 1, step 10", "train loss 2 → 0.1", "validation loss 0.1 → 0.05",
        "throughput 1.5K examples per second", "steps 20 of 20 (100%)", "2 ranks on cpu", "22.7M parameters",
        "nonsense words", "a good reply", "step-00000010 2.0 KiB best", "step-00000020 2.0 KiB latest",
        "torch 2.99", "examples.train 640", "skipped 3", "global_batch: 32", "3.2100 dog", "demo",
    ):  # fmt: skip
        assert part in page.words, part
    assert page.text.count("nonsense words") == 1 and "incomplete" not in page.text
    titles = ("Loss", "Metrics by epoch", "Learning rate", "Gradient norm", "Throughput")
    assert page.tags.count("svg") == len(titles) and all(title in page.words for title in titles)
    assert ("title", f"{EVIL} → dog: 1 (25.0 %)") in page.attributes


def test_rows_that_are_in_train_as_well_are_named_beside_the_figures(run):
    whole_run(run)
    run.update(facts={**FACTS, "validation rows in train": "2 of 80 rows"})
    words = Page(write_report(run.path)).words
    said = "2 of 80 rows are in train as well"
    assert f"validation: {said}, so its figures are not those on new data." in words
    assert f"best accuracy 0.7500 after epoch 1, step 10 · {said}" in words
    assert f"validation loss 0.1 → 0.05 first to last · {said}" in words
    run.update(facts={**FACTS, "validation rows in train": ["odd"]})
    assert "in train as well" not in Page(write_report(run.path)).words


def test_tables_are_those_of_the_best_checkpoint_and_say_so(run):
    whole_run(run)
    page = Page(write_report(run.path))
    for part in (
        "Confusion matrix best checkpoint (step 10)", "Classes best checkpoint (step 10)",
        "Worst examples largest loss; best checkpoint (step 10)",
        "Samples model output before and after training; after: best checkpoint (step 10)",
    ):  # fmt: skip
        assert part in page.words, part
    assert "8.7600" not in page.text and ("title", f"{EVIL} → dog: 4 (100.0 %)") not in page.attributes
    run.update(summary={"best_metric": "accuracy", "best_step": 20})  # what the training itself says goes first
    page = Page(write_report(run.path))
    assert "8.7600" in page.text and "best accuracy 0.6250 after epoch 2, step 20" in page.words


def test_tables_of_the_test_split_are_of_the_best_checkpoint_whatever_their_step(run):
    whole_run(run)
    Journal(run).table("test_per_class", step=20, columns=["label", "support"], rows=[["dog", 4]])
    assert "Test per class best checkpoint (step 10)" in Page(write_report(run.path)).words


def test_the_best_evaluation_follows_the_recipes_own_direction(tmp_path):
    run = Run.create(make_recipe(evaluation={"best": "accuracy", "best_mode": "min"}), tmp_path)
    whole_run(run)
    (run.checkpoints / "best").unlink()
    assert "best accuracy 0.6250 after epoch 2, step 20" in Page(write_report(run.path)).words


def test_a_stopped_run_shows_its_last_step_and_not_the_last_row(run):
    journal = begin(run)
    for step in range(1, 14):
        journal.step(step=step, epoch=step / 10, progress={})
        if step % 5 == 0:
            journal.row(train_row(step))
    journal.finished(status="stopped", summary={})
    assert run.read()["sessions"][-1]["step"] == 13
    page = Page(write_report(run.path))
    assert "❚❚ stopped" in page.text and "steps 13 of 20 (65%)" in page.words
    sessions = run.read()["sessions"]
    del sessions[-1]["step"]  # as earlier versions and kills leave it: the latest checkpoint knows better than the rows
    run.update(sessions=sessions)
    assert "steps 10 of 20 (50%)" in Page(write_report(run.path)).words
    (run.checkpoints / "latest").write_text("step-00000012")
    assert "steps 12 of 20 (60%)" in Page(write_report(run.path)).words


def test_nothing_in_the_page_runs_or_asks_the_network(run):
    whole_run(run)
    page = Page(write_report(run.path))
    assert EVIL in page.text, "shown as it is"
    assert not {"img", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", run.report_file.read_text(encoding="utf-8"), re.DOTALL)
    code = [text for attributes, text in scripts if not attributes]
    assert all(attributes in ("", ' type="application/json"') for attributes, _ in scripts) and len(code) == 1
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = [value for name, value in page.attributes if name in ("href", "src", "xlink:href", "action")]
    assert all(value.startswith("#") for value in addresses)
    policy = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy and policy[0].startswith("default-src 'none'")
    assert policy[0].endswith(f"script-src 'sha256-{digest}'"), "no other script runs"
    assert not re.search(r"url\((?!#)|@import", run.report_file.read_text(encoding="utf-8"))


def test_a_wandb_address_is_a_link(run):
    begin(run)
    run.update(wandb={"id": "x", "folder": "wandb/run-x", "url": "https://example.org/runs/x"})
    assert ("href", "https://example.org/runs/x") in Page(write_report(run.path)).attributes


def test_a_run_just_begun_and_one_half_done(run):
    assert "No metrics have been logged yet" in Page(write_report(run.path)).text
    journal = begin(run)
    for step in range(1, 6):
        journal.row(train_row(step))
    page = Page(write_report(run.path))
    for part in ("● running", "steps 5 of 20 (25%)", "time 2.5s"):
        assert part in page.words, part
    assert "Metrics by epoch" not in page.text and "Confusion" not in page.text


def test_a_killed_run_is_called_interrupted(run):
    begin(run).row(train_row(1))
    done = subprocess.Popen(["true"])
    done.wait()
    run.update(process={**run.read()["process"], "pid": done.pid})
    assert "❚❚ interrupted" in Page(write_report(run.path)).text


def test_200_000_rows_stay_small_and_keep_their_spike(run):
    begin(run)
    with run.metrics_file.open("w") as file:
        for step in range(1, 200_001):
            file.write(json.dumps({**train_row(step), "loss": 99.0 if step == 77_777 else 1.0}) + "\n")
    path = write_report(run.path)
    assert path.stat().st_size < 1_000_000
    series = collect_series(
        {"step": s, "split": "train", "loss": 99.0 if s == 77_777 else 1.0} for s in range(1, 200_001)
    )
    few = thin(series["train", "loss"])
    assert len(few.mean) == 400 and few.high.max() == 99 and few.low.min() == 1
    assert few.steps[few.high.argmax()] == pytest.approx(77_777, abs=500)
    assert float(few.mean.mean()) == pytest.approx((199_999 + 99) / 200_000)


def test_damaged_and_odd_files_do_not_hide_the_rest(run):
    whole_run(run)
    (run.tables / "per_class-step-00000020.json").write_text("{")
    (run.tables / "samples-step-00000020.json").write_text("[]")
    run.recipe_file.write_text("a: [")
    with run.metrics_file.open("a") as file:
        file.write('{"loss": 1}\n{"step": 21, "loss": null, "split": "train"}\n{"step": "x"}\n{"st')
    page = Page(write_report(run.path))
    assert "0.7500 after epoch 1" in page.words and "dog" in page.text


def test_a_damaged_part_is_named_and_hides_no_other(run):
    whole_run(run)
    matrix = {
        "name": "confusion_matrix",
        "step": 10,
        "columns": ["reference", "a", "b"],
        "rows": [["a", 1, 2], ["b", "x", 0]],
    }
    (run.tables / "confusion_matrix-step-00000010.json").write_text(json.dumps(matrix))
    (run.tables / "per_class-step-00000010.json").write_text('{"columns": 5, "rows": [1]}')
    (run.tables / "worst_examples-step-00000010.json").write_text('{"columns": ["a", "b"], "rows": [[1]]}')
    page = Page(report(run.path))
    shown = "Not shown, because its file is damaged or of another version: confusion matrix (ValueError: row 2 has a cell that"
    assert shown in page.words
    assert "best accuracy 0.7500" in page.words and "a good reply" in page.words
    run.update(data_changes="x")
    with pytest.raises(UserError, match="data_changes is not a list"):
        report(run.path)


def test_many_classes_and_multi_label_tables(run):
    journal = begin(run)
    names = [f"c{index}" for index in range(40)]
    rows = [[name, *(9 if at == index else 0 for at in range(40))] for index, name in enumerate(names)]
    journal.table("confusion_matrix", step=1, columns=["reference", *names], rows=rows)
    page = Page(write_report(run.path))
    assert page.tags.count("rect") >= 40 and "No example of one class was taken for another" in page.words
    rows[3][8] = 7  # c3 was taken for c7
    journal.table("confusion_matrix", step=1, columns=["reference", *names], rows=rows)
    assert "c3 c7 7 44%" in Page(write_report(run.path)).words
    journal.table("confusion_matrix", step=2, columns=["label", "true_negative"], rows=[["spam", 12]])
    assert "true_negative" in Page(write_report(run.path)).text
    journal.table("per_class", step=2, columns=["label", "support"], rows=[[f"k{i}", i] for i in range(1000)])
    assert "900 more rows in tables/" in Page(write_report(run.path)).text


def test_a_folder_that_is_no_run_is_told_with_the_newest_run_below(run, tmp_path):
    with pytest.raises(UserError, match="not a run folder") as error:
        report(tmp_path)
    assert str(run.path) in error.value.remedy


def test_shares_of_a_step_are_drawn_where_they_were_traced(run):
    journal = begin(run)
    split = {"compute_seconds": 0.3, "communication_seconds": 0.1, "slowest_seconds": 0.05, "data_seconds": 0.05}
    for step in range(1, 21):
        journal.row({**train_row(step), **(split if step > 1 else {})})
    shares = [chart for chart in draw_charts(collect_series(read_rows(run.metrics_file)), {}) if "time" in chart.title]
    assert [chart.title for chart in shares] == ["Step time breakdown"]
    for label in ("compute", "communication", "waiting for the slowest rank", "waiting for data"):
        assert label in shares[0].drawing.svg and label in dict(shares[0].drawing.legend)
    assert "GPU" not in shares[0].drawing.svg


def test_charts_take_what_comes():
    def series(*values):
        return Series(np.arange(len(values), dtype=float), np.full(len(values), np.nan), np.array(values, dtype=float))

    assert not draw_chart("empty", [Line("a", series())])
    one = draw_chart("one", [Line("a", series(0.0))], zero=True)
    assert one.svg.startswith("<svg viewBox=") and 'aria-label="one: a 0"' in one.svg and "var(--series-1)" in one.svg
    labelled = draw_chart("$x$", [Line("$a_b$ <b>", series(1, 2), points=True), Line("_hidden", series(1, 2))])
    assert "$a_b$ &lt;b&gt; from 1 to 2" in labelled.svg and "<b>" not in labelled.svg + labelled.data
    assert labelled.legend == (("$a_b$ <b>", "--series-1"), ("_hidden", "--series-2"))
    assert json.loads(labelled.data)["lines"][0]["points"] == [[0.0, 1.0], [1.0, 2.0]]
    wide = draw_chart("wide", [Line("a", series(*np.geomspace(1e-3, 1e3, 50)))])
    assert "mathdefault" not in wide.svg and ">100<" in wide.svg and json.loads(wide.data)["log"]
    assert not re.search(r"#0a0b", one.svg + labelled.svg + wide.svg), "every color is the page's"


def test_two_points_that_lie_close_do_not_fill_the_axis():
    steps = np.array([1.0, 2.0])
    close = draw_chart(
        "Metrics", [Line("accuracy", Series(steps, steps, np.array([0.71, 0.72])), points=True)], share=True
    )
    low, high = json.loads(close.data)["y"]
    assert high - low == pytest.approx(0.22) and low < 0.71 < 0.72 < high


def test_smoothing_keeps_the_ends_and_the_mean():
    line = np.linspace(5, 1, 300)
    assert smooth(line) == pytest.approx(line)
    assert smooth(np.array([1.0, 9.0])).tolist() == [1.0, 9.0]


def test_chromium_draws_it(run):
    """A real browser: at three widths the page fits its window, without an error on the console, and the script that hides in
    the data does not run.
    """
    program = find_chromium()
    if program is None:
        pytest.skip("needs chromium: none on PATH")
    whole_run(run)
    path = write_report(run.path)
    with Browser(program) as browser:
        for width in (400, 1200, 2400):
            drawn = browser.draw(path, width)
            assert drawn["width"] <= width and drawn["faults"] == [] and drawn["largest"] > 0
        assert browser.value("document.title") == "demo · done"
        assert browser.value("document.querySelectorAll('svg').length") == 5


def test_curves_are_read_out_and_enlarged_by_keys(run, tmp_path):
    """In a real browser, with the page's own script; a second one presses the keys."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium: none on PATH")
    whole_run(run)
    keys = """<script>
      const chart = document.querySelector("figure.chart"), said = [];
      const press = (key) => chart.dispatchEvent(new KeyboardEvent("keydown", { key }));
      for (const key of ["Home", "ArrowRight", "End", "+"]) {
        press(key);
        said.push(chart.querySelector("output").textContent);
      }
      said.push(chart.querySelectorAll(".enlarged .curve").length);
      press("Escape");
      said.push(chart.querySelectorAll(".enlarged").length);
      document.title = "said " + said.join(" | ");
    </script></body>"""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", write_report(run.path).read_text("utf-8"))
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", keys), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.resolve().as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    said = re.search(r"<title>said (.*?)</title>", dumped)
    assert said is not None, dumped[:300]
    first, second, last, _, enlarged, left = said[1].split(" | ")
    assert (first, second) == ("step 1: train 2", "step 2: train 1")
    assert last == "step 20: train 0.1 · validation 0.05"
    assert (enlarged, left) == ("2", "0")


def test_secrets_in_a_recipe_are_not_shown(tmp_path):
    recipe = make_recipe(data={"train": "https://user:hunter2@example.org/set.jsonl"})
    run = Run.create(recipe, tmp_path)
    assert "hunter2" in run.recipe_file.read_text(), "what is read back is exact; load_recipe refuses such a source"
    assert "hunter2" not in write_report(run.path).read_text()
