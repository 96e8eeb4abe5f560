"""Sessions for nox. What to install stands in pyproject.toml and is read from there."""

from __future__ import annotations

import re
from pathlib import Path

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
# Making models needs them, and a device chooses its runtime.
NOT_ON_DEVICES = {"onnx", "onnx-ir", "onnxscript", "onnxruntime", "rich"}
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"


def _extra(name: str) -> list[str]:
    return list(PROJECT["project"]["optional-dependencies"][name])


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the test suite, with the example plugin installed."""
    session.install("-e", ".", *_extra("test"), "./tests/plugin_package")
    session.run("pytest", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the test suite and report which lines it does not reach; docs/stability.md says why."""
    session.install("-e", ".", *_extra("test"), "./tests/plugin_package", "coverage[toml]>=7.10")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install("-e", ".", "mypy", "types-protobuf")
    session.run("mypy")


@nox.session(python=False)
def device_requirements(session: nox.Session) -> None:
    """Write the dependencies of a device anew, from those of the project; see docs/install.md."""
    path = Path("requirements-device.txt")
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    kept = [
        dependency
        for dependency in PROJECT["project"]["dependencies"]
        if re.split(r"[<>=!~; ]", dependency)[0] not in NOT_ON_DEVICES
    ]
    path.write_text("\n".join([*comments, *kept]) + "\n", encoding="utf-8")
    session.log(f"wrote {len(kept)} requirements")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/; a warning is an error, and a dead link is a warning."""
    session.install(*_extra("docs"))
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def notebooks(session: nox.Session) -> None:
    """Run the notebooks of examples/ and store their outputs."""
    session.install("-e", ".", *_extra("test"))
    session.run("python", "examples/run_notebooks.py", *session.posargs)
