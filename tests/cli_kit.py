"""What several tests of the command line share: a net, an artifact of it, and the command in this process."""

from __future__ import annotations

from pathlib import Path

import onnx.parser

import edgeinfer as ei
from edgeinfer.cli import main

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
    i = Identity(x)
    y = MatMul(i, w)
}"""


def save_net(folder: Path) -> Path:
    return ei.Model.load(onnx.parser.parse_model(NET)).save(folder / "net.onnx")


def save_edge(net: Path) -> str:
    return str(ei.compile(net, "onnxruntime").save(net.with_suffix(".edge")).path)


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
