"""`ActiveSet`: the models that answer now, and how others take their place between two requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import final

from edgeinfer.errors import EdgeInferError
from edgeinfer.fleet.device.generations import Generations
from edgeinfer.fleet.device.model_set import ModelSet
from edgeinfer.fleet.errors import ApplicationError, NoModelError

__all__ = ["ActiveSet"]


@final
class ActiveSet:
    """What an application serves. It follows the pointer `current` of the device.

    New models are loaded by a thread of their own, while the old ones answer: a load that hangs keeps nobody
    from anything, and the agent takes the release back.

    Args:
        root: The device's folder.
        changed: Called after something changed that the agent is to know.

    Attributes:
        models: The models that answer; None before the first was asked for, and after the end.
        accepts: The interface that is accepted of each model that is wanted.
        failed: The last generation that could not be loaded, and why.
        loads: The generation that is being loaded, and since when; (0, 0.0) for none.
    """

    def __init__(self, root: Path, changed: Callable[[], object]) -> None:
        self._root = root
        self._changed = changed
        self._generations = Generations(root)
        self._lock = threading.Lock()  # of `models`
        self._switching = threading.Lock()  # of what is added and switched
        self._closed = False
        self.models: ModelSet | None = None
        self.accepts: dict[str, str] = {}
        self.failed: tuple[int, str] = (0, "")
        self.loads: tuple[int, float] = (0, 0.0)

    def add(self, name: str, accepts: str) -> None:
        """Serve one more model. Raises EdgeInferError where it cannot be."""
        with self._switching:
            if self.models is None:
                self.models = self._first({**self.accepts, name: accepts})
            else:
                self.models.add(name, accepts)
            self.accepts[name] = accepts

    def pin(self) -> ModelSet:
        """Return the models that answer, pinned."""
        with self._lock:
            models = self.models
            if models is not None and models.pin():
                return models
        raise ApplicationError("The connection is closed.", hint="Connect again.")

    def follow(self) -> None:
        """Begin to load the current generation if it is another one than is served."""
        number, models = self._generations.current(), self.models
        if models is None or number == 0:
            return
        if number == models.number:
            if models.standby is not None and self._generations.committed(number):
                models.drop_standby()
        elif number not in (self.failed[0], self.loads[0]) and not self._went_back(number, models):
            self.loads = (number, time.monotonic())
            threading.Thread(target=self._load, args=(number,), name="edgeinfer-load", daemon=True).start()
            self._changed()

    def close(self) -> None:
        """Let go of the models."""
        self._closed = True
        with self._lock:
            models, self.models = self.models, None
        if models is not None:
            models.unpin()

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
            first = ModelSet(self._root, generation, accepts)
        except EdgeInferError as error:
            self.failed = (number, _one_line(error))
            if generation.previous == 0:
                self._changed()
                raise
            previous = self._previous(generation.previous, accepts)
            if previous is None:
                self._changed()
                raise
            return previous
        if generation.previous and not self._generations.committed(number):
            previous = self._previous(generation.previous, accepts)
            if previous is not None:
                first.stand_by(previous)
        return first

    def _previous(self, number: int, accepts: dict[str, str]) -> ModelSet | None:
        try:
            return ModelSet(self._root, self._generations.read(number), accepts)
        except EdgeInferError:  # the current generation tells, if it does not load either
            return None

    def _went_back(self, number: int, models: ModelSet) -> bool:
        """Serve the previous generation again, if that is wanted and it is still loaded."""
        standby = models.pin_standby()
        if standby is None:
            return False
        if standby.number != number:
            standby.unpin()
            return False
        with self._switching:
            self._serve(standby)  # the pin that was just taken is the application's
        models.unpin()
        return True

    def _load(self, number: int) -> None:
        try:
            loaded = ModelSet(self._root, self._generations.read(number), dict(self.accepts))
            with self._switching:
                self._switch(loaded)
        except EdgeInferError as error:
            self.failed = (number, _one_line(error))
        except Exception as error:  # of a disk, or of a backend: the agent is told, and serving goes on
            self.failed = (number, f"{type(error).__name__}: {error}")
        if self.loads[0] == number:
            self.loads = (0, 0.0)
        self._changed()

    def _switch(self, loaded: ModelSet) -> None:
        """Let new models answer, if they are still wanted."""
        old = self.models
        if old is None or self._closed or self._generations.current() != loaded.number:
            loaded.unpin()
            return
        for name, interface in self.accepts.items():  # asked for while it was loaded
            loaded.add(name, interface)
        old.drop_standby()
        # In a soak the old models stay loaded: they answer where a new one fails.
        soaks = not self._generations.committed(loaded.number)
        if soaks:
            loaded.stand_by(old)
        self._serve(loaded)
        if not soaks:
            old.unpin()

    def _serve(self, models: ModelSet) -> None:
        with self._lock:
            closed, self.models = self._closed, None if self._closed else models
        if closed:
            models.unpin()
        self._changed()


def _one_line(error: EdgeInferError) -> str:
    return " ".join(str(error).split())[:500]
