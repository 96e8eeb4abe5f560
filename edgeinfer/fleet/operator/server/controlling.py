"""The controller within a server: a thread that takes folders' reports in and moves rollouts on."""

from __future__ import annotations

import logging
import threading
from typing import final

from edgeinfer.fleet.operator.assigning import StorageShelf, signer_of
from edgeinfer.fleet.operator.collecting import collect
from edgeinfer.fleet.operator.controller import Controller
from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.publisher import Publisher, Shelf
from edgeinfer.fleet.operator.restoring import notice_restore
from edgeinfer.fleet.operator.server.doorbell import Bells, RingingShelf
from edgeinfer.fleet.operator.store.retention import Retention

__all__ = ["ControllerThread"]

_LOG = logging.getLogger(__name__)


@final
class ControllerThread:
    """Ticks until it is closed. A round that fails is logged, and tried again.

    Args:
        fleet: The fleet.
        interval: Seconds between two rounds.
        bells: What tells devices of new documents; None: they poll.

    Attributes:
        rounds: Rounds that were done, since the start.
        failures: Rounds that failed.
    """

    def __init__(self, fleet: Fleet, interval: float, bells: Bells | None) -> None:
        self.rounds = self.failures = 0
        self._fleet = fleet
        self._interval = interval
        shelf: Shelf = StorageShelf(fleet.repository.storage)
        if bells is not None:
            shelf = RingingShelf(shelf, bells)
        self._publisher = Publisher(shelf, signer_of(fleet.repository.keys))
        self._woken = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._work, name="edgeinfer-controller", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let the next round begin now: an operator has done something."""
        self._woken.set()

    def close(self) -> None:
        """End after the round that is being done."""
        self._stop = True
        self._woken.set()
        self._thread.join()

    def _work(self) -> None:
        noticed, retention = False, Retention(self._fleet.database)
        while not self._stop:
            self._woken.clear()
            try:
                if not noticed:
                    notice_restore(self._fleet.database, self._publisher, self._fleet.repository)
                    noticed = True
                collect(self._fleet.database, self._fleet.repository.storage)
                Controller(self._fleet.database, self._publisher).tick()
                retention.step()
                self.rounds += 1
            except Exception:
                self.failures += 1
                _LOG.exception("a round of the controller failed; the next one tries again")
            self._woken.wait(self._interval)
