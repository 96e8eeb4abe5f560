"""What TensorRT says: its one logger, and who listens to it."""

from __future__ import annotations

import threading
from typing import Any, final

__all__ = ["LogCapture", "logger_of"]


@final
class LogCapture:
    """Collects what TensorRT says while a block runs, by severity.

    TensorRT keeps the first logger of a process, so there is one logger a module, and it hands each
    message to the captures of the thread that it comes from. TensorRT's own worker threads have none: what
    they say goes to all captures there are, since nothing tells for whom they work.
    """

    def __init__(self, trt: Any) -> None:
        self._captures: dict[int, list[LogCapture]] = logger_of(trt).captures
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def __enter__(self) -> LogCapture:
        with _LOCK:
            self._captures.setdefault(threading.get_ident(), []).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        with _LOCK:
            mine = self._captures[threading.get_ident()]
            mine.remove(self)
            if not mine:
                del self._captures[threading.get_ident()]


# Reentrant: collecting garbage in a logger may destroy an engine, which logs.
_LOCK = threading.RLock()
_LOGGERS: dict[str, Any] = {}


def logger_of(trt: Any) -> Any:
    """Return the one logger that all builders, parsers and runtimes of a module must share."""
    with _LOCK:
        known = _LOGGERS.get(trt.__name__)
        if not isinstance(known, trt.ILogger):
            known = _LOGGERS[trt.__name__] = _new_logger(trt)
        return known


def _new_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.captures: dict[int, list[LogCapture]] = {}

        def log(self, severity: Any, message: str) -> None:
            with _LOCK:
                own = self.captures.get(threading.get_ident())
                for capture in own or [c for captures in self.captures.values() for c in captures]:
                    if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                        capture.errors.append(message)
                    elif severity == trt.ILogger.WARNING:
                        capture.warnings.append(message)

    return Logger()
