"""The process that the children of a tuning run are forked from: it has imported what all of them need.

To import takes a child a second of processor time and more, to fork some milliseconds. No runtime is imported
here and no session opened, so a child is as good as a new process: it crashes, hangs and grows on its own.

A message asks for a child (with its stdin, stdout and stderr) or for the end of one. The process ends when
the one that started it is gone.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

__all__: list[str] = []

_MOST_BYTES = 1 << 16
_STREAMS = 3
_LOOK_S = 0.01


def main(descriptor: int, modules: Sequence[str]) -> None:
    """Import modules, then serve requests until there is nobody who asks."""
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child that collects garbage does not copy what was imported
    with socket.socket(fileno=descriptor) as line:
        while True:
            data, streams, _, _ = socket.recv_fds(line, _MOST_BYTES, _STREAMS)
            if not data:
                return
            request = json.loads(data)
            if "module" in request:
                _fork(line, request["module"], streams)
            else:
                line.send(json.dumps({"code": _end_of(request)}).encode())


def _fork(line: socket.socket, module: str, streams: Sequence[int]) -> None:
    """Fork a child. It tells its number itself, when it has a process group that can be killed."""
    with warnings.catch_warnings():
        # Other threads than this one are numpy's, which ends and starts them around a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        return
    code = 1
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        line.send(json.dumps({"pid": os.getpid()}).encode())
        line.close()
        code = importlib.import_module(module).main() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # what the server would do at its end is not a child's to do


def _end_of(request: Mapping[str, Any]) -> int | None:
    """Return the exit code of a child, negative for a signal; None if it has not ended in time."""
    end = time.monotonic() + request["timeout_s"]
    while True:
        pid, status = os.waitpid(request["wait"], os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
