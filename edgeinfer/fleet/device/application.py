"""`connect`: how an application reaches the models that the agent of its device installed.

    import edgeinfer as ei

    with ei.fleet.connect("/var/lib/edge") as device:
        model = device.model("defects", accepts="defects/2")
        with model.request() as session:              # one set of models for one request
            outputs = session.infer({"input": x})
        model.observe(confidence=0.93, label="scratch")

The models are loaded in the application's own process. A thread follows the pointer `current`: it loads new
models while the old ones answer, and switches between requests. Neither the agent nor a network is needed to
answer requests.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import final

from edgeinfer.fleet.device.active_set import ActiveSet
from edgeinfer.fleet.device.capture import Capture, SampleWriter
from edgeinfer.fleet.device.exchange import AppFiles, AppStatus, ModelStatus, read_order
from edgeinfer.fleet.device.model_handle import ModelHandle
from edgeinfer.fleet.device.model_set import ModelSet
from edgeinfer.fleet.device.patience import Patience
from edgeinfer.fleet.device.probe import SystemProbe
from edgeinfer.fleet.errors import ApplicationError

__all__ = ["Application", "connect"]

# So much later than the switch of the pointer, at most, new models begin to load.
_FOLLOW_S = 0.2
_TELL_S = 1.0
_PATIENCE_S = 10.0
# From then on memory that grows is a leak: allocators and caches fill in the first requests.
_SETTLED_REQUESTS = 50


def connect(
    folder: str | os.PathLike[str],
    *,
    capture: Capture | None = None,
    follow_s: float = _FOLLOW_S,
    patience_s: float = _PATIENCE_S,
) -> Application:
    """Connect to the models of this device.

    Args:
        folder: The folder of the device's agent.
        capture: Keep some requests on disk; None for none.
        follow_s: How often to look for a new generation, in seconds.
        patience_s: How long an inference of a release in its soak may take before the previous release
            answers instead, in seconds.

    Raises:
        ApplicationError: It is no folder of an agent.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise ApplicationError(
            "There is no folder of an agent.",
            where=str(root),
            hint="Start the agent first: edgeinfer agent run.",
        )
    return Application(root, capture=capture, follow_s=follow_s, patience_s=patience_s)


@final
class Application:
    """An application's connection; a context manager. Made by `connect`.

    Several threads may use it. A process that forks connects after the fork.
    """

    def __init__(self, root: Path, *, capture: Capture | None, follow_s: float, patience_s: float) -> None:
        self._root = root
        self._run = root / "run"
        self._active = ActiveSet(root, self._tell)
        self._telling = threading.Lock()  # of the file of this application
        self._health: tuple[bool, str] = (True, "")
        self._defer_until = 0.0
        self._stop = threading.Event()
        self._boot_id = SystemProbe().boot_id()
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._told = 0.0
        self.samples = SampleWriter(root, capture)
        self.patience = Patience(patience_s)
        try:
            self._files = AppFiles(self._run)
        except OSError as error:
            raise ApplicationError(
                "The folder of the agent cannot be written.",
                where=str(self._run),
                found=error.strerror,
                hint="Run the application in the agent's group (docs/fleet-device.md).",
            ) from error
        self._thread = threading.Thread(
            target=self._follow, args=(follow_s,), name="edgeinfer-follow", daemon=True
        )
        self._thread.start()

    @property
    def generation(self) -> int:
        """The number of the generation that is served; 0 before the first model was asked for."""
        models = self._active.models
        return models.number if models is not None else 0

    def model(self, name: str, accepts: str = "", *, deadline_ms: float | None = None) -> ModelHandle:
        """Return a model, loaded and ready.

        Args:
            name: Its name.
            accepts: The interface that this application was written for, such as `defects/2`; the agent
                installs no release with another one. Empty accepts any.
            deadline_ms: Count the inferences that take longer.

        Raises:
            NoModelError: It is not installed.
            InterfaceError: The installed release has another interface.
            EdgeInferError: It cannot be loaded.
        """
        self._active.add(name, accepts)
        self._tell()
        return ModelHandle(self, name, deadline_ms)

    def defer(self, seconds: float) -> None:
        """Ask the agent not to switch models for so long; it waits, but not beyond its own deadline."""
        self._defer_until = time.monotonic() + seconds
        self._tell()

    def allow(self) -> None:
        """Take `defer` back."""
        self.defer(0.0)

    def report_health(self, ok: bool, reason: str = "") -> None:
        """Tell the agent how the application itself is. In a soak, False rolls the new models back."""
        self._health = (ok, reason)
        self._tell()

    def close(self) -> None:
        """Stop following and close the models. Closing twice is allowed."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self.samples.close()
        self._tell(closed=True)
        self._active.close()
        self.patience.close()
        self._files.close()

    def pin(self) -> ModelSet:
        """Return the active set, pinned. For `ModelHandle.request`."""
        return self._active.pin()

    def _follow(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self._active.follow()
                order = read_order(self._run) if self._active.models is not None else None
                self.samples.order(order, self.generation)
                if time.monotonic() - self._told > _TELL_S:
                    self._tell()
            except OSError as error:  # a full disk, say: serving goes on, and the agent misses us
                self._active.failed = (self._active.failed[0], f"{type(error).__name__}: {error}")

    def _tell(self, *, closed: bool = False) -> None:
        with self._telling:
            self._tell_once(closed=closed)

    def _tell_once(self, *, closed: bool) -> None:
        active, accepts = self._active.models, self._active.accepts
        models = {}
        if active is not None:
            models = {
                name: loaded.statistics.status(accepts.get(name, ""), loaded.pin.release)
                for name, loaded in list(active.models.items())
            }
        rss = self._rss()
        if active is not None and not active.settled_rss and _enough(models):
            active.settled_rss = rss
        self._told = time.monotonic()
        status = AppStatus(
            boot_id=self._boot_id,
            told_at=self._told,
            closed=closed,
            generation=active.number if active is not None else 0,
            seconds=self._told - active.since if active is not None else 0.0,
            loads_generation=self._active.loads[0],
            loads_since=self._active.loads[1],
            failed_generation=self._active.failed[0],
            failure=self._active.failed[1],
            rss_bytes=rss,
            grown_bytes=rss - active.settled_rss if active is not None and active.settled_rss else 0,
            healthy=self._health[0],
            health_reason=self._health[1],
            defer_until=self._defer_until,
            models=models,
        )
        # Where the disk does not take it, answering goes on; the agent, told nothing, trusts its own test.
        with contextlib.suppress(OSError):
            self._files.tell(status)

    def _rss(self) -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * self._page

    def __enter__(self) -> Application:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _enough(models: Mapping[str, ModelStatus]) -> bool:
    return any(status.requests >= _SETTLED_REQUESTS for status in models.values())
