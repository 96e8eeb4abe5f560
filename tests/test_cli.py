"""The command `edgeinfer`, mostly in this process; a few times as a real process."""

from __future__ import annotations

import importlib.metadata
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import onnx.parser
import pytest
from PIL import Image

import edgeinfer as ei
from edgeinfer.cli import main
from edgeinfer.transforms import contract, pipeline
from tests.cli_kit import NET, fails, run, save_edge, save_net


@pytest.fixture
def net(tmp_path):
    return save_net(tmp_path)


@pytest.fixture
def edge(net):
    return save_edge(net)


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({}, "not installed"),
        ({"onnxruntime": "1.32"}, "1.32"),
        ({"onnxruntime-gpu": "1.31"}, "onnxruntime-gpu 1.31"),
        (
            {"onnxruntime": "1.32", "onnxruntime-gpu": "1.31"},
            "1.32, onnxruntime-gpu 1.31; they are one folder",
        ),
    ],
)
def test_doctor_tells_builds_of_onnxruntime_apart(installed, told, monkeypatch):
    from edgeinfer.cli import doctor

    def version(name: str) -> str:
        try:
            return installed[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor._version("onnxruntime").startswith(told)


def test_doctor(capsys):
    text = run(capsys, "doctor")
    assert "onnxruntime" in text
    found = json.loads(run(capsys, "doctor", "--json"))
    assert found["backends"]["onnxruntime"]["available"]
    assert found["backends"]["onnxruntime"]["devices"][0]["name"] == "CPU"
    assert found["local"]["cpu"]["model"] in text
    assert found["local"]["memory_bytes"] > 0
    assert all(item["topic"] in text for item in found["local"]["advice"])
    for backend in found["backends"].values():
        assert backend["available"] or (backend["reason"] and backend["install"].startswith("pip install"))


def test_inspect(capsys, net, edge):
    assert "MatMul" in run(capsys, "inspect", net, "--nodes", "2")
    assert json.loads(run(capsys, "inspect", net, "--json", "--shape", "N=4"))["macs"] == 4 * 6
    assert json.loads(run(capsys, "inspect", net, "--json", "--shape", "x=5x2"))["macs"] == 5 * 6
    assert "portable" in run(capsys, "inspect", edge)
    assert json.loads(run(capsys, "inspect", edge, "--json"))["backend"] == "onnxruntime"


def test_optimize(capsys, net, tmp_path):
    out = tmp_path / "out.onnx"
    text = run(capsys, "optimize", net, "-o", out, "--transform", "Simplify")
    assert "Simplify" in text
    assert [node.op_type for node in ei.Model.load(out).ir.graph] == ["MatMul"]
    call = 'FixShapes({"x": (4, 2)})'
    found = json.loads(run(capsys, "optimize", net, "-o", out, "--transform", "Simplify", call, "--json"))
    assert found["output"] == str(out)
    assert ei.Model.load(out).signature.inputs[0].shape == (4, 2)


def test_optimize_with_the_recipe_of_a_target(capsys, net, tmp_path):
    out = tmp_path / "out.onnx"
    run(capsys, "optimize", net, "-o", out, "--target", "onnxruntime")
    assert ei.Model.load(out).target == "onnxruntime"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Nonsense", "There is no transform 'Nonsense'"),
        ("Pipeline", "There is no transform"),
        ("Simplify(nonsense=1)", "refuses its arguments"),
        ("Simplify(", "not a transform"),
        ("FixShapes(open('x'))", "not a transform"),
    ],
)
def test_transforms_that_are_none(capsys, net, tmp_path, text, said):
    out = tmp_path / "out.onnx"
    assert said in fails(capsys, "optimize", net, "-o", out, "--transform", text)
    assert not out.exists()


def test_compile_and_run(capsys, net, tmp_path):
    text = run(capsys, "compile", net, "-b", "onnxruntime", "--option", "threads=1")
    assert "net.edge" in text
    assert ei.Artifact.open(tmp_path / "net.edge").manifest.options["threads"] == 1
    np.save(tmp_path / "x.npy", np.array([[1, 0], [0, 1]], np.float32))
    out = tmp_path / "out.npz"
    text = run(capsys, "run", tmp_path / "net.edge", "--input", f"x={tmp_path / 'x.npy'}", "--output", out)
    assert "made-up" not in text
    with np.load(out) as archive:
        np.testing.assert_array_equal(archive["y"], [[1, 2, 3], [4, 5, 6]])


def test_run_a_model_with_inputs_from_one_npz(capsys, net, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros((3, 2), np.float32))
    found = json.loads(run(capsys, "run", net, "-b", "onnxruntime", "--input", tmp_path / "in.npz", "--json"))
    assert found["outputs"]["y"] == {"dtype": "float32", "shape": [3, 3]}


def test_run_with_made_up_inputs_says_so(capsys, edge):
    assert "made-up inputs" in run(capsys, "run", edge)


def test_compile_json(capsys, net, tmp_path):
    out = tmp_path / "other.edge"
    found = json.loads(run(capsys, "compile", net, "-b", "onnxruntime", "-o", out, "--json"))
    assert (found["output"], found["kind"]) == (str(out), "portable")
    assert found["digest"] == ei.Artifact.open(out).digest


def test_bench(capsys, edge, net):
    assert "p99.9" in run(capsys, "bench", edge, "--runs", "5", "--execution")
    found = json.loads(run(capsys, "bench", net, "-b", "onnxruntime", "--runs", "5", "--bound", "--json"))
    assert (found["n"], found["mode"]) == (5, "bound")


def test_bench_with_memory_and_feeds(capsys, edge, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    found = json.loads(
        run(capsys, "bench", edge, "--runs", "5", "--memory", "--feeds", tmp_path / "x.npy", "--json")
    )
    assert found["memory"]["peak_bytes"] > found["memory"]["baseline_bytes"] > 0
    assert found["notes"] == ["3 feeds in turn"]  # the rows of one file, one at a time
    assert found["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": [1, 2], "origins": ["from feeds", "declared"]}
    ]
    assert found["memory"]["inputs"] == found["inputs"]


@pytest.mark.parametrize("size", [["--batch", "4"], ["--shape", "N=4"], ["--shape", "x=4x2"]])
def test_the_batch_that_is_asked_for_is_timed_and_shown(capsys, edge, tmp_path, size):
    np.save(tmp_path / "x.npy", np.zeros((10, 2), np.float32))
    with_feeds = [*size, "--feeds", tmp_path / "x.npy"]
    found = json.loads(run(capsys, "bench", edge, "--runs", "3", *with_feeds, "--json"))
    assert found["inputs"][0]["shape"] == [4, 2]
    assert "2 of 10 samples do not fill a batch of 4 and are left out" in found["notes"]
    made_up = json.loads(run(capsys, "bench", edge, "--runs", "3", *size, "--json"))
    assert made_up["inputs"][0]["shape"] == [4, 2]
    assert "x float32 (4, 2)" in run(capsys, "bench", edge, "--runs", "3", *size)


def test_bench_of_several_artifacts_takes_turns(capsys, edge, net, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    lines = ("bench", edge, net, edge, "-b", "onnxruntime", "--runs", "5", "--feeds", tmp_path / "x.npy")
    assert "cannot be chosen" in fails(capsys, *lines)  # of an artifact
    other = ei.compile(net, "onnxruntime", options={"threads": 1}).save(tmp_path / "other.edge").path
    lines = ("bench", edge, other, edge, "--runs", "5", "--feeds", tmp_path / "x.npy")
    text = run(capsys, *lines)
    assert "speed-up" in text
    assert "5 turns" in text
    assert "x float32 (1, 2), N = 1 from feeds" in text
    found = json.loads(run(capsys, *lines, "--json"))
    assert list(found) == [edge, str(other), f"{edge} (3)"]
    assert all(report["n"] == 5 for report in found.values())
    assert found[edge]["speedup"] == 1.0
    assert "for one artifact" in fails(capsys, "bench", edge, other, "--memory")


def test_images_with_their_preprocessing(capsys, tmp_path):
    text = NET.replace("float[N, 2] x", "float[N, 1, 2, 2] x").replace("float[N, 3] y", "float[N, 1, 2, 3] y")
    images = ei.Model.load(onnx.parser.parse_model(text)).save(tmp_path / "images.onnx")
    for index in range(3):
        pixels = np.full((5, 5), 10 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    made = tmp_path / "made.json"
    made.write_text(json.dumps({"size": [2, 2], "color": "L"}))
    given = ("--images", tmp_path, "--preprocessing", made)
    found = json.loads(run(capsys, "compare", images, images, *given, "--json"))
    assert found["feeds"] == 3
    run(capsys, "optimize", images, "-o", tmp_path / "o.onnx", "--transform", "ToFloat16", *given)
    assert [entry.config for entry in ei.Model.load(tmp_path / "o.onnx").history] == [{"calibrated": True}]
    assert json.loads(run(capsys, "bench", images, "-b", "onnxruntime", "--runs", "3", *given, "--json"))
    assert "belong together" in fails(capsys, "compare", images, images, "--images", tmp_path)
    assert "not both" in fails(capsys, "compare", images, images, "--feeds", tmp_path, *given)
    for content in ("{", "[]", '{"size": "big"}'):
        made.write_text(content)
        fails(capsys, "compare", images, images, *given)


def test_compare_says_where_models_ran(capsys, net, tmp_path):
    out = tmp_path / "out.onnx"
    run(capsys, "optimize", net, "-o", out, "--target", "openvino")
    found = json.loads(run(capsys, "compare", net, out, "--json"))
    assert (found["reference_on"], found["candidate_on"]) == ("onnxruntime:CPU", "openvino:CPU")
    found = json.loads(run(capsys, "compare", net, out, "--target", "onnxruntime", "--json"))
    assert found["candidate_on"] == "onnxruntime:CPU"


def test_compare(capsys, net, edge, tmp_path):
    assert "SQNR" in run(capsys, "compare", net, net, "--layers")
    folder = tmp_path / "feeds"
    folder.mkdir()
    np.save(folder / "a.npy", np.ones((1, 2), np.float32))
    np.savez(folder / "b.npz", x=np.ones((2, 2), np.float32))
    found = json.loads(run(capsys, "compare", net, edge, "--feeds", folder, "--json"))
    assert found["feeds"] == 2
    assert found["outputs"]["y"]["max_abs"] < 1e-5


def test_a_fixed_batch_takes_samples_one_by_one(capsys, tmp_path):
    fixed = ei.Model.load(onnx.parser.parse_model(NET.replace("[N,", "[1,"))).save(tmp_path / "fixed.onnx")
    np.save(tmp_path / "x.npy", np.ones((5, 2), np.float32))
    found = json.loads(run(capsys, "compare", fixed, fixed, "--feeds", tmp_path / "x.npy", "--json"))
    assert found["feeds"] == 5


def test_errors_are_one_clean_message(capsys, net, edge, tmp_path):
    assert "no such model file" in fails(capsys, "inspect", tmp_path / "nope.onnx")
    assert "There is no backend 'nonsense'" in fails(capsys, "compile", net, "-b", "nonsense")
    refused = fails(capsys, "optimize", net, "-o", tmp_path / "o.onnx", "--transform", "FixShapes(3)")
    assert "FixShapes refuses its arguments" in refused
    compiling = ("compile", net, "-b", "onnxruntime")
    assert "has no option 'nonsense'" in fails(capsys, *compiling, "--option", "nonsense=1")
    assert "cannot be chosen" in fails(capsys, "run", edge, "-b", "openvino")
    assert "has no input 'z'" in fails(capsys, "run", edge, "--input", "z=a.npy")
    assert "no such file" in fails(capsys, "run", edge, "--input", f"x={tmp_path / 'nope.npy'}")
    assert "no such artifact" in fails(capsys, "bench", tmp_path / "nope.edge")
    assert "cannot be written" in fails(capsys, "run", edge, "--output", tmp_path / "no" / "out.npz")
    assert "cannot be written" in fails(capsys, *compiling, "-o", tmp_path / "no" / "a.edge")
    (tmp_path / "text.npy").write_text("not numpy")
    assert "not a file of numpy arrays" in fails(capsys, "run", edge, "--input", f"x={tmp_path / 'text.npy'}")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no .npy and no .npz" in fails(capsys, "compare", net, net, "--feeds", empty)


def test_files_of_inputs_are_never_unpickled(capsys, edge, tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object))
    assert "not a file of numpy arrays" in fails(capsys, "run", edge, "--input", f"x={tmp_path / 'evil.npy'}")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.write(tmp_path / "evil.npy", "x.npy")
    (tmp_path / "evil.npz").write_bytes(buffer.getvalue())
    assert "not a file of numpy arrays" in fails(capsys, "run", edge, "--input", tmp_path / "evil.npz")


@pytest.mark.parametrize("name", sorted({*ei.transforms.__all__} - {*contract.__all__, *pipeline.__all__}))
def test_every_transform_can_be_named(capsys, net, tmp_path, name):
    """It is made, or refuses that it was given no arguments; never is it unknown."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32))
    out = tmp_path / "out.onnx"
    given = ("--calibration", tmp_path / "x.npy", "--target", "onnxruntime")
    code = main([str(a) for a in ("optimize", net, "-o", out, "--transform", name, *given)])
    said = capsys.readouterr().err
    assert "There is no transform" not in said
    refused = name == "RetargetQDQ"  # without the target that it is for
    assert (code, "refuses its arguments" in said) == ((2, True) if refused else (0, False)), said


@pytest.mark.parametrize(
    "line",
    [
        *([], ["nonsense"], ["inspect"], ["inspect", "m", "--shape", "N"], ["compile", "m", "--option", "x"]),
        *(["bench", "m", "--seconds", text] for text in ("nan", "inf", "0", "-1", "soon")),
        *(["bench", "m", "--runs", text] for text in ("0", "-1", "1.5", "nan", "many")),
        *(["bench", "m", "--warmup", text] for text in ("-1", "nan")),
        *(["bench", "m", "--batch", text] for text in ("0", "nan")),
        *(["compare", "a", "b", "--threshold-db", text] for text in ("nan", "inf", "low")),
        *(["inspect", "m", "--nodes", text] for text in ("-1", "nan")),
        *(["inspect", "m", "--shape", text] for text in ("N=nan", "N=-1", "N=1.5", "=3")),
    ],
)
def test_a_wrong_command_line_is_exit_2(capsys, line):
    with pytest.raises(SystemExit) as caught:
        main(line)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert ei.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["demo"], ["fleet", "init", "a-fleet"]])
def test_without_the_extra_it_is_said_what_to_install(arguments, tmp_path):
    script = "import sys; sys.modules['sqlalchemy'] = None; from edgeinfer.cli import main; sys.exit(main())"
    found = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert found.returncode == 2
    assert found.stderr == 'error: sqlalchemy is not installed.\n  hint: pip install "edgeinfer[fleet]"\n'
