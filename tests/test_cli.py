"""The command `edgeinfer`, mostly in this process; a few times as a real process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile

import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.cli import main
from edgeinfer.npz import write_npz

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
    i = Identity(x)
    y = MatMul(i, w)
}"""


@pytest.fixture
def net(tmp_path):
    return ei.Model.load(onnx.parser.parse_model(NET)).save(tmp_path / "net.onnx")


@pytest.fixture
def edge(net, tmp_path):
    return str(ei.compile(net, "onnxruntime").save(tmp_path / "net.edge").path)


def run(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def fails(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_doctor(capsys):
    text = run(capsys, "doctor")
    assert "onnxruntime" in text
    found = json.loads(run(capsys, "doctor", "--json"))
    assert found["backends"]["onnxruntime"]["available"]
    assert found["backends"]["onnxruntime"]["devices"][0]["name"] == "CPU"
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
    assert found["notes"] == []


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
    assert "no .npz or .npy" in fails(capsys, "compare", net, net, "--feeds", empty)


def test_files_of_inputs_are_never_unpickled(capsys, edge, tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object))
    assert "not a file of numpy arrays" in fails(capsys, "run", edge, "--input", f"x={tmp_path / 'evil.npy'}")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.write(tmp_path / "evil.npy", "x.npy")
    (tmp_path / "evil.npz").write_bytes(buffer.getvalue())
    assert "not a file of numpy arrays" in fails(capsys, "run", edge, "--input", tmp_path / "evil.npz")


@pytest.mark.parametrize(
    "line",
    [[], ["nonsense"], ["inspect"], ["inspect", "m", "--shape", "N"], ["compile", "m", "--option", "x"]],
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


def test_as_a_module_and_into_a_closed_pipe(net):
    command = [sys.executable, "-m", "edgeinfer", "inspect", str(net)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "MatMul" in done.stdout
    for arguments in (command, [*command, "--json"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(arguments, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
        os.close(write)
        assert (done.returncode, done.stderr) == (1, "")


def test_interrupting_is_exit_130(capsys, edge):
    timer = threading.Timer(1, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        assert main(["bench", edge, "--seconds", "120"]) == 130
    finally:
        timer.cancel()
    assert capsys.readouterr().err.strip() == "interrupted"


# Outputs of every dtype in files


def written(capsys, tmp_path, text: str, *arguments):
    path = ei.Model.load(onnx.parser.parse_model(text)).save(tmp_path / "m.onnx")
    out = tmp_path / "out.npz"
    run(capsys, "run", path, "-b", "onnxruntime", "--output", out, *arguments)
    return out


def test_string_outputs_are_written_and_read(capsys, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    s (float[2] x) => (string[1] y) <string[2] words = {"yes", "no"}>
    { i = ArgMax<axis = 0>(x) y = Gather(words, i) }"""
    np.save(tmp_path / "x.npy", np.array([1, 2], np.float32))
    out = written(capsys, tmp_path, text, "--input", f"x={tmp_path / 'x.npy'}")
    with np.load(out, allow_pickle=False) as archive:
        assert archive["y"].tolist() == ["no"]
    back = """<ir_version: 8, opset_import: ["" : 17]> s (string[N] y) => (string[N] z) { z = Identity(y) }"""
    again = written(capsys, tmp_path, back, "--input", out)
    with np.load(again, allow_pickle=False) as archive:
        assert archive["z"].tolist() == ["no"]


def test_an_output_may_have_any_name(capsys, tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> f (float[2] x) => (float[2] file) { file = Add(x, x) }'
    with np.load(written(capsys, tmp_path, text), allow_pickle=False) as archive:
        assert archive.files == ["file"]


@pytest.mark.parametrize("kind", ["bfloat16", "float8e4m3fn", "float8e5m2", "int4"])
def test_dtypes_that_numpy_does_not_have_come_back(capsys, tmp_path, kind):
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    number = getattr(onnx.TensorProto, kind.upper())
    np.save(tmp_path / "x.npy", np.array([1, -2, 3], np.float32))
    forth = f"{head} f (float[3] x) => ({kind}[3] y) {{ y = Cast<to = {number}>(x) }}"
    out = written(capsys, tmp_path, forth, "--input", f"x={tmp_path / 'x.npy'}")
    back = f"{head} b ({kind}[3] y) => (float[3] z) {{ z = Cast<to = 1>(y) }}"
    with np.load(written(capsys, tmp_path, back, "--input", out), allow_pickle=False) as archive:
        assert archive["z"].tolist() == [1, -2, 3]


def test_an_optional_input_may_come_from_a_file(capsys, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    d (float[2] x, float[1] scale = {2}) => (float[2] y) { y = Mul(x, scale) }"""
    np.savez(tmp_path / "in.npz", x=np.ones(2, np.float32), scale=np.array([5], np.float32))
    for name, expected in (("in.npz", 5), ("x.npy", 2)):
        np.save(tmp_path / "x.npy", np.ones(2, np.float32))
        out = written(capsys, tmp_path, text, "--input", tmp_path / name)
        with np.load(out, allow_pickle=False) as archive:
            assert archive["y"].tolist() == [expected] * 2


def test_a_string_that_numpy_cannot_keep_is_an_error():
    with pytest.raises(ValueError, match="null character"):
        write_npz(io.BytesIO(), {"y": np.array(["a\0"], object)})
