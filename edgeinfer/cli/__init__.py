"""The command `edgeinfer`: a thin wrapper around the library's functions.

Exit codes: 0 done; 1 the reader of the output is gone; 2 a wrong command line, or an error that edgeinfer
explains on stderr, such as a full disk below stdout; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from edgeinfer import __version__
from edgeinfer.cli import (
    agent_commands,
    build_commands,
    device_commands,
    doctor,
    fleet_commands,
    look_commands,
    run_commands,
    shrink_commands,
)
from edgeinfer.errors import EdgeInferError

__all__ = ["main"]

EXIT_BROKEN_PIPE = 1  # what rich exits with, too
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
# What the extra `fleet` brings, by the names of its modules.
_OF_FLEET = frozenset(
    {
        "alembic",
        "cryptography",
        "fsspec",
        "httptools",
        "paho",
        "securesystemslib",
        "sqlalchemy",
        "starlette",
        "tuf",
        "uvicorn",
        "zstandard",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        _run(argv)
    except EdgeInferError as error:
        _complain(f"error: {error}")
        return EXIT_ERROR
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _OF_FLEET:
            raise
        _complain(f'error: {missing} is not installed.\n  hint: pip install "edgeinfer[fleet]"')
        return EXIT_ERROR
    except KeyboardInterrupt:
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) is gone
        _discard(sys.stdout)
        return EXIT_BROKEN_PIPE
    except OSError as error:
        _discard(sys.stdout)
        reason = error.strerror or error
        _complain(
            f"error: {error.filename}: {reason}"
            if error.filename is not None
            else f"error: The output cannot be written to stdout: {reason}."
        )
        return EXIT_ERROR
    return 0


def _run(argv: Sequence[str] | None) -> None:
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # names of any script in a terminal of another
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
    finally:
        sys.stdout.flush()  # also what argparse printed before it exits


def _complain(text: str) -> None:
    try:
        print(text, file=sys.stderr)
    except OSError:  # on the full disk, too; the exit code tells
        _discard(sys.stderr)


def _discard(stream: Any) -> None:
    """Let the rest of the output go nowhere: Python would complain once more when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser that tells when it cannot print its help: argparse itself swallows that."""

    def _print_message(self, message: str, file: Any = None) -> None:
        stream = file or sys.stderr
        if message and stream is not None:
            stream.write(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="edgeinfer", description="Optimize ONNX models, and run them on the right hardware."
    )
    parser.add_argument("--version", action="version", version=f"edgeinfer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    modules = (
        doctor,
        look_commands,
        build_commands,
        run_commands,
        fleet_commands,
        device_commands,
        shrink_commands,
        agent_commands,
    )
    for module in modules:
        module.add_commands(commands)
    return parser
