"""The command `edgeinfer`: a thin wrapper around the library's functions.

Exit codes: 0 done; 1 the reader of the output is gone; 2 a wrong command line, or an error that edgeinfer
explains on stderr; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from edgeinfer import __version__
from edgeinfer.cli import build_commands, doctor, look_commands, run_commands
from edgeinfer.cli.console import writing
from edgeinfer.errors import EdgeInferError

__all__ = ["main"]

EXIT_BROKEN_PIPE = 1  # what rich exits with, too
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        with writing():
            arguments = _parser().parse_args(argv)
            arguments.run(arguments)
    except EdgeInferError as error:
        print(f"error: {error}", file=sys.stderr)
        _discard_stdout()
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) is gone
        _discard_stdout()
        return EXIT_BROKEN_PIPE
    return 0


def _discard_stdout() -> None:
    """Drop what stdout does not take; Python would complain of it once more when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeinfer", description="Optimize ONNX models, and run them on the right hardware."
    )
    parser.add_argument("--version", action="version", version=f"edgeinfer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (doctor, look_commands, build_commands, run_commands):
        module.add_commands(commands)
    return parser
