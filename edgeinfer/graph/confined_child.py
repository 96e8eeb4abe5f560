"""The child process of `edgeinfer.graph.confined`: a request on stdin, an answer on stdout, an artifact."""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

__all__: list[str] = []


def main() -> int:
    """Compile one model."""
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints is no answer
    _limit(request["max_bytes"])
    print(json.dumps({"error": _compile(request)}), file=answers, flush=True)
    os._exit(0)  # whatever the runtimes have to tidy up is not worth a crash


def _limit(most: int) -> None:
    """Take the right to more: memory (not the libraries' code), the size of a file, cores after a crash."""
    for kind, limit in (
        (resource.RLIMIT_DATA, most),
        (resource.RLIMIT_FSIZE, most),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        lowered = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lowered, lowered))


def _compile(request: dict[str, Any]) -> dict[str, Any] | None:
    from edgeinfer.devices.remote.worker import describe_error
    from edgeinfer.errors import CompileError, EdgeInferError
    from edgeinfer.graph.build import compile_model

    try:
        artifact = compile_model(
            request["model"], request["target"], device=request["device"], options=request["options"]
        )
        artifact.save(request["output"])
    except MemoryError:
        return describe_error(
            CompileError(
                "Reading and compiling the model takes more memory than it may.",
                expected=f"at most {request['max_bytes'] / 1e6:.0f} MB",
            )
        )
    except EdgeInferError as error:
        return describe_error(error)
    except Exception as error:
        return describe_error(
            CompileError(f"The model makes the compiler fail: {type(error).__name__}: {error}")
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
