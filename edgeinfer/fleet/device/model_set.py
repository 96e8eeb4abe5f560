"""`ModelSet`: the loaded models of one generation.

It is open as long as someone pins it: the application that serves it, each request that it answers, and the
next generation, for which it stands by until that one has passed its soak.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

from edgeinfer.fleet.device.generations import Generation, Pin
from edgeinfer.fleet.device.statistics import ServingStatistics
from edgeinfer.fleet.errors import InterfaceError, NoModelError
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session

__all__ = ["LoadedModel", "ModelSet"]


@final
class LoadedModel:
    """A model that is loaded, with its counts."""

    def __init__(self, pin: Pin, folder: Path) -> None:
        self.pin = pin
        self.folder = folder
        self.session: Session = load(folder / "artifact")
        self.statistics = ServingStatistics()
        self.hung = False  # an inference had not ended in time: it is not asked again


@final
class ModelSet:
    """The models of one generation that an application uses; pinned once, for who makes it.

    Args:
        root: The device's folder.
        generation: The pins.
        accepts: The interface that is accepted, by the names of the models that are wanted.

    Raises:
        NoModelError: The generation has no such model.
        InterfaceError: The application does not accept its interface.
        EdgeInferError: A model cannot be loaded.
    """

    def __init__(self, root: Path, generation: Generation, accepts: Mapping[str, str]) -> None:
        self.generation = generation
        self.number = generation.number
        self.since = time.monotonic()
        self.settled_rss = 0  # the application's resident bytes once this set had served some requests
        self._standby: ModelSet | None = None
        self._root = root
        self._lock = threading.Lock()
        self._pins = 1  # of who made it
        self._models: dict[str, LoadedModel] = {}
        try:
            for name, interface in accepts.items():
                self.add(name, interface)
        except BaseException:
            self.unpin()
            raise

    @property
    def models(self) -> Mapping[str, LoadedModel]:
        """The loaded models by name."""
        return self._models

    def add(self, name: str, accepts: str) -> LoadedModel:
        """Load one more model."""
        found = self._models.get(name)
        if found is not None:
            return found
        pin = self.generation.models.get(name)
        if pin is None:
            raise NoModelError(
                f"No model {name!r} is installed on this device.",
                where=str(self._root),
                expected=", ".join(sorted(self.generation.models)) or "an installed model",
                found=name,
            )
        if accepts and pin.interface != accepts:
            raise InterfaceError(
                f"The installed {name!r} has another interface.",
                where=f"release {pin.version}",
                expected=accepts,
                found=pin.interface,
                hint="Update the application first; the agent installs no model that it does not accept.",
            )
        loaded = LoadedModel(pin, self._root / pin.folder)
        self._models[name] = loaded
        return loaded

    def pin(self) -> bool:
        """Keep it open until `unpin`; False where it is closed already."""
        with self._lock:
            if self._pins == 0:
                return False
            self._pins += 1
            return True

    def unpin(self) -> None:
        """Let go of it; the last one to let go closes it."""
        with self._lock:
            self._pins -= 1
            last = self._pins == 0
        if last:
            self.drop_standby()
            for loaded in self._models.values():
                loaded.session.close()

    def stand_by(self, previous: ModelSet) -> None:
        """Keep the previous generation loaded. The caller's pin on it becomes this set's."""
        self._standby = previous

    @property
    def standby(self) -> ModelSet | None:
        """The previous generation, while it is kept loaded."""
        return self._standby

    def pin_standby(self) -> ModelSet | None:
        """Return the previous generation, pinned, while it is kept loaded."""
        with self._lock:
            standby = self._standby
            return standby if standby is not None and standby.pin() else None

    def drop_standby(self) -> None:
        """Let go of the previous generation: this one has passed its soak, or closes."""
        with self._lock:
            standby, self._standby = self._standby, None
        if standby is not None:
            standby.unpin()
