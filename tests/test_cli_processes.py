"""The command as a process: full disks, closed pipes, terminals."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.cli import main
from tests.cli_kit import NET, save_edge, save_net


@pytest.fixture
def net(tmp_path):
    return save_net(tmp_path)


@pytest.fixture
def edge(net):
    return save_edge(net)


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


def process(*arguments: object, stdout: object = subprocess.PIPE, **more: object):
    command = [sys.executable, "-m", "edgeinfer", *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, **more)  # type: ignore[call-overload]


# Commands that take their time: their help is enough.
LONG = ("agent", "estimate", "fleet", "prune", "quantize", "select", "sensitivity", "tune")


def command_lines(net: object, edge: str, folder: object) -> dict[str, list[object]]:
    """One of each command, and of what argparse prints by itself."""
    return {
        "doctor": ["doctor"],
        "inspect": ["inspect", net, "--nodes", "1"],
        "inspect an artifact": ["inspect", edge],
        "optimize": ["optimize", net, "-o", f"{folder}/o.onnx", "--transform", "Simplify"],
        "compile": ["compile", net, "-b", "onnxruntime", "-o", f"{folder}/o.edge"],
        "run": ["run", edge],
        "bench": ["bench", edge, "--runs", "2"],
        "compare": ["compare", net, net],
        "demo": ["demo", "--small"],
        "devices": ["devices"],
        **{name: [name, "--help"] for name in LONG},
        "help": ["--help"],
        "help of a command": ["run", "--help"],
        "version": ["--version"],
    }


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="a full disk is Linux's /dev/full")
def test_stdout_on_a_full_disk_is_a_message(net, edge, tmp_path, monkeypatch):
    """In this process for each command, which all end in the same place; see below for real processes."""
    lines = command_lines(net, edge, tmp_path)
    assert {line[0] for line in lines.values()} >= set(commands())
    for arguments in lines.values():
        errors = io.StringIO()
        with FULL.open("w") as full, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            patch.setattr(sys, "stderr", errors)
            assert main([str(argument) for argument in arguments]) == 2
        assert (
            errors.getvalue() == "error: The output cannot be written to stdout: No space left on device.\n"
        )


def commands() -> list[str]:
    from edgeinfer.cli import _parser

    (action,) = (action for action in _parser()._actions if hasattr(action, "choices") and action.choices)
    return list(action.choices)


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [(["doctor"], ""), (["--version"], "1"), (["doctor", "--json"], "1")]
)
def test_a_process_whose_stdout_is_full_or_closed(arguments, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with FULL.open("w") as full:
        done = process(*arguments, stdout=full, env=environment)
        assert done.returncode == 2
        assert done.stderr == "error: The output cannot be written to stdout: No space left on device.\n"
        silent = subprocess.run(
            [sys.executable, "-m", "edgeinfer", *arguments],
            stdout=full,
            stderr=full,
            env=environment,
            check=False,
        )
        assert silent.returncode == 2
    closed = process(*arguments, env=environment, preexec_fn=lambda: os.close(1))
    assert closed.returncode == 2
    assert closed.stderr == "error: The output cannot be written to stdout: Bad file descriptor.\n"


def test_names_that_a_terminal_cannot_show(tmp_path):
    proto = onnx.parser.parse_model(NET)
    proto.graph.output[0].name = proto.graph.node[1].output[0] = "ü"
    net = ei.Model.load(proto).save(tmp_path / "net.onnx")
    done = process("inspect", net, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xfc" in done.stdout
