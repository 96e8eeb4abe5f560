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

from edgeinfer.errors import EdgeInferError
from edgeinfer.fleet.device.capture import Capture, SampleWriter
from edgeinfer.fleet.device.exchange import AppFiles, AppStatus, ModelStatus, read_order
from edgeinfer.fleet.device.generations import Generations
from edgeinfer.fleet.device.model_handle import ModelHandle
from edgeinfer.fleet.device.model_set import ModelSet
from edgeinfer.fleet.device.probe import SystemProbe
from edgeinfer.fleet.errors import ApplicationError, NoModelError

__all__ = ["Application", "connect"]

# So much later than the switch of the pointer, at most, new models begin to load.
_FOLLOW_S = 0.2
_TELL_S = 1.0
# From then on memory that grows is a leak: allocators and caches fill in the first requests.
_SETTLED_REQUESTS = 50


def connect(
    folder: str | os.PathLike[str], *, capture: Capture | None = None, follow_s: float = _FOLLOW_S
) -> Application:
    """Connect to the models of this device.

    Args:
        folder: The folder of the device's agent.
        capture: Keep some requests on disk; None for none.
        follow_s: How often to look for a new generation, in seconds.

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
    return Application(root, capture=capture, follow_s=follow_s)


@final
class Application:
    """An application's connection; a context manager. Made by `connect`.

    Several threads may use it. A process that forks connects after the fork.
    """

    def __init__(self, root: Path, *, capture: Capture | None, follow_s: float) -> None:
        self._root = root
        self._run = root / "run"
        self._generations = Generations(root)
        self._accepts: dict[str, str] = {}
        self._lock = threading.Lock()  # of the active set
        self._loading = threading.Lock()  # of loading and switching
        self._telling = threading.Lock()  # of the file of this application
        self._active: ModelSet | None = None
        self._failed: tuple[int, str] = (0, "")
        self._health: tuple[bool, str] = (True, "")
        self._defer_until = 0.0
        self._stop = threading.Event()
        self._boot_id = SystemProbe().boot_id()
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._told = 0.0
        self.samples = SampleWriter(root, capture)
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
        active = self._active
        return active.number if active is not None else 0

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
        with self._loading:
            if self._active is None:
                self._active = self._first({**self._accepts, name: accepts})
            else:
                self._active.add(name, accepts)
            self._accepts[name] = accepts
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
        with self._lock:
            active, self._active = self._active, None
        if active is not None:
            active.unpin()
        self._files.close()

    def pin(self) -> ModelSet:
        """Return the active set, pinned. For `ModelHandle.request`."""
        with self._lock:
            active = self._active
            if active is not None and active.pin():
                return active
        raise ApplicationError("The connection is closed.", hint="Connect again.")

    def _first(self, accepts: dict[str, str]) -> ModelSet:
        """Return the first set: of the current generation, or where that does not load, of the one before."""
        number = self._generations.current()
        if number == 0:
            raise NoModelError(
                "No models are installed on this device yet.",
                where=str(self._root),
                hint="The agent installs them when they are assigned: edgeinfer agent status.",
            )
        generation = self._generations.read(number)
        try:
            return ModelSet(self._root, generation, accepts)
        except EdgeInferError as error:
            self._failed = (number, _one_line(error))
            if generation.previous == 0:
                self._tell()
                raise
            try:
                return ModelSet(self._root, self._generations.read(generation.previous), accepts)
            except EdgeInferError:
                self._tell()
                raise error from None

    def _follow(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self._switch()
                active = self._active
                self.samples.order(read_order(self._run) if active is not None else None, self.generation)
                if time.monotonic() - self._told > _TELL_S:
                    self._tell()
            except OSError as error:  # a full disk, say: serving goes on, and the agent misses us
                self._failed = (self._failed[0], f"{type(error).__name__}: {error}")

    def _switch(self) -> None:
        """Load the current generation if it is another one than is served, and let it answer from now on."""
        number = self._generations.current()
        active = self._active
        if active is None or number == 0:
            return
        if number == active.number:
            if active.standby is not None and self._generations.committed(number):
                active.drop_standby()
            return
        if number == self._failed[0]:
            return
        with self._loading:
            standby = active.pin_standby()
            if standby is not None and standby.number == number:
                # Back, and it is still loaded: the pin that was just taken is the application's.
                self._serve(standby)
                active.unpin()
                return
            if standby is not None:
                standby.unpin()
            try:
                loaded = ModelSet(self._root, self._generations.read(number), dict(self._accepts))
            except EdgeInferError as error:
                self._failed = (number, _one_line(error))
                self._tell()
            else:
                # In a soak the old models stay loaded: they answer where a new one fails.
                active.drop_standby()
                soaks = not self._generations.committed(number)
                if soaks:
                    loaded.stand_by(active)
                self._serve(loaded)
                if not soaks:
                    active.unpin()

    def _serve(self, models: ModelSet) -> None:
        with self._lock:
            self._active = models
        self._tell()

    def _tell(self, *, closed: bool = False) -> None:
        with self._telling:
            self._tell_once(closed=closed)

    def _tell_once(self, *, closed: bool) -> None:
        active = self._active
        models = {}
        if active is not None:
            models = {
                name: loaded.statistics.status(self._accepts.get(name, ""), loaded.pin.release)
                for name, loaded in list(active.models.items())
            }
        rss = self._rss()
        if active is not None and not active.settled_rss and _enough(models):
            active.settled_rss = rss
        self._told = time.monotonic()
        status = AppStatus(
            boot_id=self._boot_id,
            closed=closed,
            generation=active.number if active is not None else 0,
            seconds=self._told - active.since if active is not None else 0.0,
            failed_generation=self._failed[0],
            failure=self._failed[1],
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


def _one_line(error: EdgeInferError) -> str:
    return " ".join(str(error).split())[:500]
