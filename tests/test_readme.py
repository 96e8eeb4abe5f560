"""What the README says works: its Python runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from edgeinfer.cli import _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(blocks("python")) >= 2
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["outputs"]["logits"].shape == (449, 10)
    assert (tmp_path / "digits.edge" / "manifest.json").is_file()
    assert "SQNR" in capsys.readouterr().out


def test_the_first_command_runs_the_mission_and_the_second_the_tests():
    first, second = blocks("bash")[:2]
    assert shlex.split(first)[-1] == "demo"
    assert shlex.split(first)[:4] == ["python3", "-m", "venv", ".venv"]
    assert re.findall(r"\[([\w,]+)\]", first) == ["openvino,fleet"]  # what the mission needs
    assert shlex.split(second)[-2:] == ["-m", "pytest"]
    extras = {extra for group in re.findall(r"\[([\w,]+)\]", first + second) for extra in group.split(",")}
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras:
        assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE)


def test_the_commands_that_it_names_exist():
    named = set(re.findall(r"`(doctor|inspect|optimize|compile|run|bench|compare|demo)`", README))
    assert named >= {"inspect", "optimize", "compile", "run", "bench", "compare", "demo"}
    for command in (*named, "doctor"):
        with pytest.raises(SystemExit) as caught:
            _parser().parse_args([command, "--help"])
        assert caught.value.code == 0
