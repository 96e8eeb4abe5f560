"""`compile_confined`: read and compile a model in a child process that has a limit for everything.

A model that is not trusted may make a parser or a compiler crash, run without end or take all memory. In a
child of limited time, memory and files each of these is an error like any other. It is no sandbox: the child
runs as the same user, so code that takes it over can do what this user can; put a container around that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.devices.remote.ssh import error_from
from edgeinfer.errors import CompileError, EdgeInferError, OptionsError
from edgeinfer.plain_json import parse_json

__all__ = ["Limits", "compile_confined"]

_CHILD = "edgeinfer.graph.confined_child"
_MAX_ANSWER = 1 << 20
_TAIL = 500


def _positive(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise OptionsError(
            "A limit is not a positive number.", where=attribute.name, expected="above 0", found=value
        )


@final
@attrs.frozen(kw_only=True)
class Limits:
    """What reading and compiling a model may take.

    Attributes:
        timeout_s: Seconds, from the start of the child process to its end.
        max_bytes: Memory of its own, and the size of each file that it writes.

    Raises:
        OptionsError: A limit is not a positive number.
    """

    timeout_s: float = attrs.field(default=120.0, validator=_positive)
    max_bytes: int = attrs.field(default=4 << 30, validator=_positive)

    @classmethod
    def of(cls, value: Limits | Mapping[str, Any] | bool) -> Limits:
        """Return the limits that an argument stands for: True for those of the class.

        Raises:
            OptionsError: It is none.
        """
        if isinstance(value, Limits):
            return value
        fields = {} if value is True else value
        if not isinstance(fields, Mapping) or not set(fields) <= {"timeout_s", "max_bytes"}:
            raise OptionsError(
                "Those are no limits.", expected="True, Limits, or timeout_s and max_bytes", found=repr(value)
            )
        return cls(**fields)


def compile_confined(
    source: object,
    target: str | None,
    limits: Limits,
    *,
    device: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Artifact:
    """Read and compile a model in a child process.

    Args:
        source: The path of an `.onnx` file, or its bytes. Anything else was read in this process already.
        target: As for `edgeinfer.compile`.
        limits: What the child may take.
        device: As for `edgeinfer.compile`.
        options: As for `edgeinfer.compile`, of values that JSON can hold.

    Raises:
        OptionsError: The source is neither, or an option is no value of JSON.
        CompileError: The child took too long or too much memory, or crashed.
        EdgeInferError: What the child refused the model with.
    """
    with tempfile.TemporaryDirectory(prefix="edgeinfer-confined-") as scratch:
        folder = Path(scratch)
        request = {
            "model": str(_path(source, folder)),
            "target": target,
            "device": device,
            "options": options,
            "output": str(folder / "model.edge"),
            "max_bytes": limits.max_bytes,
        }
        try:
            text = json.dumps(request)
        except (TypeError, ValueError) as error:
            raise OptionsError(
                "Options reach a confined compiler as JSON, and these are none.", found=str(error)
            ) from error
        _run(text, limits)
        artifact = Artifact.open(folder / "model.edge")  # every file is verified against the manifest
        return attrs.evolve(artifact, path=None)


def _path(source: object, folder: Path) -> Path:
    if isinstance(source, (bytes, bytearray, memoryview)):
        path = folder / "model.onnx"
        path.write_bytes(source)
        return path
    if isinstance(source, (str, os.PathLike)):
        return Path(source).absolute()
    raise OptionsError(
        "Only a model that was not read yet can be read under limits.",
        where="limits",
        expected="a path or bytes",
        found=type(source).__name__,
    )


def _run(text: str, limits: Limits) -> None:
    """Run the child to its end.

    Raises:
        EdgeInferError: It did not compile the model.
    """
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 (this interpreter, and a module of ours)
            [sys.executable, "-m", _CHILD],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # a group of its own, which is killed as one
        )
        try:
            process.communicate(text.encode(), timeout=limits.timeout_s)
        except subprocess.TimeoutExpired as error:
            raise CompileError(
                "Reading and compiling the model took too long.",
                expected=f"at most {limits.timeout_s:g} s",
                hint="Raise the limit `timeout_s`, if you trust the model to come to an end.",
            ) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        answer.seek(0)
        log.seek(0, os.SEEK_END)
        log.seek(max(log.tell() - _TAIL, 0))
        said = log.read().decode("utf-8", "replace").strip().splitlines()
        _judge(answer.read(_MAX_ANSWER), process.returncode, said[-1] if said else "", limits)


def _judge(answer: bytes, code: int, said: str, limits: Limits) -> None:
    try:
        error = parse_json(answer)["error"]
        raised = None if error is None else error_from(error, "")
    except (ValueError, TypeError, KeyError, AttributeError):
        raised = _died(code, said, limits)
    if raised is not None:
        raise raised


def _died(code: int, said: str, limits: Limits) -> EdgeInferError:
    known = -code in set(signal.Signals)
    ended = signal.Signals(-code).name if known else f"exit code {code}"
    return CompileError(
        "The process that read and compiled the model ended without an answer.",
        expected=f"at most {limits.max_bytes / 1e6:.0f} MB of memory, and no crash",
        found=f"{ended}. {said}".strip(),
        hint="The model may be made to do that; do not compile it without limits.",
    )
