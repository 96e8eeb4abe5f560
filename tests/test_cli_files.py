"""What the commands write into files, and the inputs that they read from them."""

from __future__ import annotations

import io
import os
import signal
import stat
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.cli import main
from edgeinfer.cli.run_commands import write_arrays
from edgeinfer.npz import write_npz
from tests.cli_kit import fails, run, save_edge, save_net


@pytest.fixture
def net(tmp_path):
    return save_net(tmp_path)


@pytest.fixture
def edge(net):
    return save_edge(net)


# What `run --output` writes


def test_outputs_are_written_in_one_step(capsys, edge, tmp_path, monkeypatch):
    out = tmp_path / "out.npz"
    run(capsys, "run", edge, "--output", out)
    before = out.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array", fail)
    assert "No space left on device" in fails(capsys, "run", edge, "--output", out)
    assert out.read_bytes() == before
    assert "No space" in fails(capsys, "run", edge, "--output", tmp_path / "new.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.edge", "net.onnx", "out.npz"]


def test_outputs_to_what_is_no_file(capsys, edge, tmp_path):
    assert "No space left" in fails(capsys, "run", edge, "--output", "/dev/full")
    assert "is a directory" in fails(capsys, "run", edge, "--output", tmp_path).lower()
    assert "null byte" in fails(capsys, "run", edge, "--output", f"{tmp_path}/a\0b")
    run(capsys, "run", edge, "--output", os.devnull)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.parametrize("command", ["optimize", "tune", "quantize", "prune", "compile", "run", "demo"])
def test_where_to_write_is_checked_before_the_work(capsys, command, net, edge, tmp_path, monkeypatch):
    """A command that computes for an hour must not find out at its end that the folder is not there."""
    monkeypatch.setattr("edgeinfer.model.model.Model.load", lambda *_: pytest.fail("it began to work"))
    out = tmp_path / "no" / "out"
    option = {"run": "--output", "demo": "--html"}.get(command, "-o")
    target = ["--target", "onnxruntime"] if command in ("tune", "quantize", "prune") else []
    source = {"run": [edge], "demo": []}.get(command, [net])
    assert "there is no such folder" in fails(capsys, command, *source, *target, option, out)
    if command != "compile":
        assert "is a directory" in fails(capsys, command, *source, *target, option, tmp_path)


def test_outputs_of_any_name_and_dtype(capsys, tmp_path):
    text = """<ir_version: 10, opset_import: ["": 21]>
    net (string[2] x, float[2] f) => (string[2] file, float[2] allow_pickle) {
        file = Identity(x) allow_pickle = Neg(f)
    }"""
    net = ei.Model.load(onnx.parser.parse_model(text)).save(tmp_path / "net.onnx")
    np.savez(tmp_path / "in.npz", x=np.array(["a", "ü"]), f=np.array([1, 2], np.float32))
    out = tmp_path / "out.npz"
    run(capsys, "run", net, "-b", "onnxruntime", "--input", tmp_path / "in.npz", "--output", out)
    with np.load(out, allow_pickle=False) as archive:
        assert archive["file"].tolist() == ["a", "ü"]
        assert archive["allow_pickle"].tolist() == [-1, -2]
    write_arrays(out, {"arr_0": np.array([1, 2], ml_dtypes.bfloat16), "a/b": np.zeros((0, 3))})
    with np.load(out, allow_pickle=False) as archive:
        assert archive["arr_0"].view(ml_dtypes.bfloat16).tolist() == [1, 2]
        assert archive["a/b"].shape == (0, 3)


def test_interrupting_is_exit_130(capsys, edge):
    timer = threading.Timer(1, signal.raise_signal, [signal.SIGINT])
    # A shell starts what runs in the background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        assert main(["bench", edge, "--seconds", "120"]) == 130
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
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
