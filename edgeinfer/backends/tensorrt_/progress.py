"""Progress and cancelling of a build, through TensorRT's progress monitor where the version has one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from edgeinfer.backends.tensorrt_.flavours import Flavour
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.display import shows_progress
from edgeinfer.errors import OptionsError

__all__ = ["progress_monitor"]


@contextlib.contextmanager
def progress_monitor(
    trt: Any, flavour: Flavour, config: Any, options: TensorRTOptions, cancelled: list[bool]
) -> Iterator[None]:
    """Report progress and ask for cancelling while a block builds; `cancelled` becomes non-empty if it was.

    Raises:
        OptionsError: Progress or cancelling was asked for, and this version has no monitor.
    """
    asked = options.cancel is not None or options.progress not in (None, False)
    if not flavour.has("progress_monitor"):
        if asked:
            raise OptionsError(
                f"{flavour} has no progress monitor: it can neither report progress nor be cancelled.",
                where="option cancel" if options.cancel is not None else "option progress",
                expected="tensorrt 10 or newer, or tensorrt-rtx",
            )
        yield
        return
    with contextlib.ExitStack() as stack:
        report: Callable[[str, int, int], object] | None = None
        if callable(options.progress):
            report = options.progress
        elif shows_progress(options.progress):
            report = stack.enter_context(_bars())
        if report is None and options.cancel is None:
            yield
            return
        failures: list[BaseException] = []
        monitor = _monitor(trt, report, options.cancel, cancelled, failures)
        config.progress_monitor = monitor
        try:
            yield
        finally:
            config.progress_monitor = None
        if failures:
            raise failures[0]


def _monitor(
    trt: Any,
    report: Callable[[str, int, int], object] | None,
    cancel: Callable[[], bool] | None,
    cancelled: list[bool],
    failures: list[BaseException],
) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            # An exception must not cross the builder's C++ frames: it is kept, and ends the build.
            try:
                if report is not None:
                    report(phase, step + 1, self._steps.get(phase, step + 1))
                if cancel is not None and cancel():
                    cancelled.append(True)
            except BaseException as error:
                failures.append(error)
            return not cancelled and not failures

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], object]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(phase: str, step: int, steps: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=steps)
            progress.update(tasks[phase], completed=step, total=steps, visible=step < steps)

        yield report
