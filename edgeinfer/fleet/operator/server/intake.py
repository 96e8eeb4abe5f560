"""`Intake`: reports of many requests into few transactions.

While a transaction is written the next reports gather, so that a busy server writes large batches and an idle
one does not wait. A device is answered when its reports are on disk, not before.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import final

import attrs
from sqlalchemy.exc import InterfaceError, OperationalError

from edgeinfer.errors import FleetError
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.ingest import ingest
from edgeinfer.fleet.operator.store.ingested import Ingested, Refusal

__all__ = ["BusyError", "Intake"]

_LOG = logging.getLogger(__name__)
_BATCH = 500


class BusyError(FleetError):
    """Too many reports wait for the database, or it cannot be reached: devices are to come again."""


@attrs.frozen
class _Job:
    documents: Sequence[bytes]
    result: Future[tuple[Refusal, ...]]


@final
class Intake:
    """Takes reports in, on a thread of its own.

    Args:
        database: The store.
        max_waiting: How many reports may wait.

    Attributes:
        applied: Reports that told something new, since the start.
        ignored: Duplicates and older ones.
        refused: Reports that nobody is answerable for.
        seconds: Time that was spent on them.
    """

    def __init__(self, database: Database, *, max_waiting: int = 50_000) -> None:
        self._database = database
        self._max_waiting = max_waiting
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self.applied = self.ignored = self.refused = 0
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="edgeinfer-intake", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many reports wait for the database."""
        return self._waiting

    async def submit(self, documents: Sequence[bytes]) -> tuple[Refusal, ...]:
        """Take reports in; return those that were refused, when all others are on disk.

        Raises:
            BusyError: Not now.
        """
        with self._lock:
            if self._waiting + len(documents) > self._max_waiting:
                raise BusyError("Too many reports wait for the database.", found=self._waiting)
            self._waiting += len(documents)
        job = _Job(documents, Future())
        self._jobs.put(job)
        return await asyncio.wrap_future(job.result)

    def close(self) -> None:
        """Take in what waits, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            jobs, count = [], 0
            job = self._jobs.get()
            while job is not None:
                jobs.append(job)
                count += len(job.documents)
                if count >= _BATCH:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            ended = job is None
            if jobs:
                self._take(jobs)
                with self._lock:
                    self._waiting -= count

    def _take(self, jobs: Sequence[_Job]) -> None:
        begun = time.perf_counter()
        try:
            found = self._ingest([document for job in jobs for document in job.documents])
        except (OperationalError, InterfaceError) as error:
            _LOG.error("the database does not take reports: %s", error.orig)
            for job in jobs:
                _fail(job, BusyError("The database does not take reports now."))
            return
        except Exception:
            # Something in one of them that nobody thought of must not keep the others out.
            _LOG.exception("a batch of reports could not be taken in; trying one by one")
            found = self._one_by_one([document for job in jobs for document in job.documents])
        finally:
            self.seconds += time.perf_counter() - begun
        self.applied += found.applied
        self.ignored += found.ignored
        self.refused += len(found.refused)
        first = 0
        for job in jobs:
            last = first + len(job.documents)
            own = tuple(
                attrs.evolve(r, index=r.index - first) for r in found.refused if first <= r.index < last
            )
            if not job.result.cancelled():
                job.result.set_result(own)
            first = last

    def _ingest(self, documents: Sequence[bytes]) -> Ingested:
        return ingest(self._database, documents)

    def _one_by_one(self, documents: Sequence[bytes]) -> Ingested:
        total = Ingested()
        for index, document in enumerate(documents):
            try:
                found = self._ingest([document])
            except Exception as error:
                reason = f"It cannot be kept: {type(error).__name__}."
                found = Ingested(refused=(Refusal(index=0, device="", reason=reason),))
            refused = tuple(attrs.evolve(refusal, index=index) for refusal in found.refused)
            total += attrs.evolve(found, refused=refused)
        return total


def _fail(job: _Job, error: Exception) -> None:
    if not job.result.cancelled():
        job.result.set_exception(error)
