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
from edgeinfer.errors import EdgeInferError

__all__ = ["main"]

EXIT_BROKEN_PIPE = 1  # what rich exits with, too
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except EdgeInferError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) is gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeinfer", description="Optimize ONNX models, and run them on the right hardware."
    )
    parser.add_argument("--version", action="version", version=f"edgeinfer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (doctor, look_commands, build_commands, run_commands):
        module.add_commands(commands)
    return parser
