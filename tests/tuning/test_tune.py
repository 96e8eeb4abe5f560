"""`tune` on a small model: real child processes, real timing, a report, going on after an interruption."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.cli import main
from edgeinfer.errors import BudgetError, CalibrationError, OptionsError, TuningError
from edgeinfer.npz import write_npz
from edgeinfer.tuning.state import State
from tests.quantization.qdq_models import Builder

MINUTES = 0.02  # the baselines and what is measured with them


@pytest.fixture(scope="module")
def model():
    net = Builder(1, 8, 12, 12)
    x = net.node("Relu", net.conv(net.input, "first", 8, 64), name="relu1")
    x = net.node("Relu", net.conv(x, "second", 64, 64), name="relu2")
    return net.model(net.conv(x, "third", 64, 8), 1, 8, 12, 12)


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 8, 12, 12)).astype(np.float32)} for _ in range(6)]


class Evaluate:
    def __init__(self):
        self.seen = []

    def __call__(self, model):
        self.seen.append(model)
        return 0.9 - 0.001 * len(model.history)


@pytest.fixture(scope="module")
def tuned(model, feeds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    evaluate = Evaluate()
    result = ei.tune(
        model,
        ei.Budget(latency_p50_ms=1e4, max_drop=0.5, disk_bytes="10 MB"),
        target="onnxruntime",
        calibration=feeds,
        evaluate=evaluate,
        minutes=MINUTES,
        journal=folder / "journal.jsonl",
        options={"threads": 1},
    )
    return result, evaluate, folder


def records_of(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_the_best_keeps_the_budget_and_its_recipe_is_replayed(tuned, model):
    result, evaluate, _ = tuned
    best = result.best
    assert result.met
    assert best.metric is not None
    assert best.latency_p50_ms > 0
    assert best.peak_bytes > 10_000_000
    assert 0 < best.disk_bytes < 10_000_000
    assert best.recipe.apply(model).digest == best.model.digest
    int8 = result.trial(1)
    assert int8.outcome == "ok"
    assert 5 < int8.sqnr_db < 80
    assert int8.recipe.apply(model).digest == int8.model.digest
    assert {entry.name for entry in int8.model.history} >= {"QuantizeStatic"}
    assert len(evaluate.seen) == sum(trial.metric is not None for trial in result.trials)


def test_compile_uses_what_it_was_tuned_for(tuned):
    result, _, _ = tuned
    trial = next(t for t in result.trials if len(t.candidate.options) == 2)
    assert trial.model.target == "onnxruntime"
    assert dict(trial.model.target_options) == {"allow_spinning": False, "threads": 1}
    manifest = ei.compile(trial.model).manifest
    assert manifest.backend == "onnxruntime"
    assert manifest.options == {"allow_spinning": False, "threads": 1}
    assert ei.compile(trial.model, options={"threads": 2}).manifest.options["threads"] == 2
    assert "threads" not in ei.compile(trial.model, "openvino").manifest.options or (
        ei.compile(trial.model, "openvino").manifest.options["threads"] != 1
    )


def test_cut_off_anywhere_it_goes_on_to_the_end(tuned, model, feeds):
    result, _, folder = tuned
    records = records_of(folder)
    kinds = [record["kind"] for record in records]
    cut = kinds.index("evaluated") + 1
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[:cut]) + lines[cut][:7])
    evaluate = Evaluate()
    again = ei.tune(
        model,
        ei.Budget(latency_p50_ms=1e4, max_drop=0.5, disk_bytes="10 MB"),
        target="onnxruntime",
        calibration=feeds,
        evaluate=evaluate,
        minutes=MINUTES,
        journal=folder / "journal.jsonl",
        options={"threads": 1},
    )
    resumed = records_of(folder)
    assert resumed[:cut] == records[:cut]
    assert [r["kind"] for r in resumed] == kinds
    assert again.chosen == result.chosen
    assert again.best.model.digest == result.best.model.digest


def test_a_finished_journal_is_read_and_nothing_is_done_again(tuned, model, feeds):
    result, _, folder = tuned
    before = (folder / "journal.jsonl").read_bytes()
    again = ei.tune(
        model,
        result.budget,
        target="onnxruntime",
        calibration=feeds,
        evaluate=lambda _: pytest.fail("evaluated again"),
        journal=folder / "journal.jsonl",
        options={"threads": 1},
    )
    assert again.chosen == result.chosen
    assert (folder / "journal.jsonl").read_bytes() == before


def test_a_journal_of_another_run_is_refused(tuned, model, feeds):
    result, evaluate, folder = tuned
    arguments = {"target": "onnxruntime", "calibration": feeds, "evaluate": evaluate}
    with pytest.raises(TuningError, match="budget differ"):
        ei.tune(
            model,
            ei.Budget(latency_p50_ms=2.0, max_drop=0.5),
            journal=folder / "journal.jsonl",
            options={"threads": 1},
            **arguments,
        )
    with pytest.raises(TuningError, match="seed differ"):
        ei.tune(
            model,
            result.budget,
            journal=folder / "journal.jsonl",
            options={"threads": 1},
            seed=1,
            **arguments,
        )


def test_an_evaluation_that_ended_the_process_twice_is_a_crash(tuned, model, feeds):
    result, _, folder = tuned
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "evaluating")
    path = folder / "crashed.jsonl"
    path.write_text("".join(lines[: first + 1]) + lines[first])
    (folder / "crashed.jsonl.files").symlink_to(folder / "journal.jsonl.files")
    evaluate = Evaluate()
    again = ei.tune(
        model,
        result.budget,
        target="onnxruntime",
        calibration=feeds,
        evaluate=evaluate,
        minutes=MINUTES,
        journal=path,
        options={"threads": 1},
    )
    trial = json.loads(lines[first])["trial"]
    assert "crashed" in again.trial(trial).lost or trial == 0
    assert trial not in State.of([json.loads(line) for line in lines[:first]]).metrics
    metrics = {t.index: t.metric for t in again.trials}
    assert metrics[trial] is None
    assert evaluate.seen


def test_the_page_is_one_file_that_needs_no_network(tuned, tmp_path):
    result, _, _ = tuned
    text = result.save_html(tmp_path / "report.html").read_text()
    assert not re.findall(r"(?:src|href|url)\s*[=(]", text)
    links = set(re.findall(r"https?://[^\s'\"<>]+", text))
    assert links <= {"http://www.w3.org/2000/svg"}
    assert "<script" not in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) >= 4
    for picture in pictures:
        ET.fromstring(picture)
    for said in ("Accuracy against latency", "Accuracy against memory", "Time of the layers", "Environment"):
        assert said in text
    assert result._repr_html_() in text


def test_the_command_line(model, feeds, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save(tmp_path / "net.onnx")
    write_npz(tmp_path / "feeds.npz", {"x": np.concatenate([feed["x"] for feed in feeds])})
    (tmp_path / "metric.py").write_text("def score(model):\n    return 1.0\n")
    line = ["tune", "net.onnx", "-o", "out.onnx", "--target", "onnxruntime", "--calibration", "feeds.npz"]
    limits = ["--latency-p50-ms", "10000", "--max-drop", "0.5", "--disk", "10 MB"]
    more = ["--evaluate", "metric:score", "--option", "threads=1", "--html", "report.html", "--recipe", "r"]
    monkeypatch.syspath_prepend(tmp_path)
    assert main([*line, *limits, *more, "--minutes", str(MINUTES), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["met"]
    assert found["chosen"] in {trial["index"] for trial in found["trials"]}
    written = ei.Model.load(tmp_path / "out.onnx")
    assert ei.Recipe.load(tmp_path / "r").apply(model).digest == written.digest
    assert (tmp_path / "report.html").stat().st_size > 5000
    assert written.target == "onnxruntime"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"budget": ei.Budget(max_drop=0.1)}, OptionsError, "there is none"),
        ({"minutes": 0}, OptionsError, "minutes is out of range"),
        ({"calibration": []}, CalibrationError, "There is no feed"),
        ({"target": "nonsense"}, ei.errors.TargetError, "nonsense"),
        ({"options": {"nonsense": 1}}, TuningError, "nonsense"),
    ],
)
def test_what_cannot_be_tuned(model, feeds, tmp_path, changes, error, said):
    arguments = {
        "budget": ei.Budget(latency_p50_ms=1.0),
        "target": "onnxruntime",
        "calibration": feeds,
        "journal": tmp_path / "journal.jsonl",
        **changes,
    }
    with pytest.raises(error, match=said):
        ei.tune(model, arguments.pop("budget"), **arguments)


def test_no_candidate_no_model(tuned):
    result, _, _ = tuned
    failed = [trial for trial in result.trials if trial.outcome != "ok"]
    for trial in failed:
        with pytest.raises(BudgetError, match="no model"):
            _ = trial.model
