"""`Agent`: installs what is assigned to a device, or undoes it."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import final

import attrs

from edgeinfer.fleet.device.advance import advance
from edgeinfer.fleet.device.blobs import BlobStore
from edgeinfer.fleet.device.clock import DeviceClock
from edgeinfer.fleet.device.desire import Desire
from edgeinfer.fleet.device.device import Device, Interrupted
from edgeinfer.fleet.device.doorbell import with_doorbell
from edgeinfer.fleet.device.download import Downloader
from edgeinfer.fleet.device.folder_lock import lock_folder
from edgeinfer.fleet.device.generations import Generations
from edgeinfer.fleet.device.identity import Identity
from edgeinfer.fleet.device.importing import import_is_requested, requested_import, source_of
from edgeinfer.fleet.device.journal import Journal
from edgeinfer.fleet.device.locations import open_locations
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.outbox import Outbox
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.probe import Probe, SystemProbe
from edgeinfer.fleet.device.sources import Blobs, Fetcher, Trust
from edgeinfer.fleet.device.spool import Spool
from edgeinfer.fleet.device.staging import Checker, ProcessChecker
from edgeinfer.fleet.device.startup import begin, check_running, load_state
from edgeinfer.fleet.device.status import AgentStatus
from edgeinfer.fleet.device.transport import Transport, open_transport
from edgeinfer.fleet.device.trust import TrustedRepository
from edgeinfer.fleet.device.watching import Watcher
from edgeinfer.fleet.errors import FleetError

__all__ = ["Agent"]

_LOG = logging.getLogger("edgeinfer.agent")
_MAX_BACKOFF_S = 300.0
_SLICE_S = 1.0
_PATIENCE = 3  # steps in which nothing goes on, where someone waits for the end


@final
class Agent:
    """The agent of a device: one in each folder at a time. A context manager.

    Args:
        folder: Where it keeps everything: models, journal, reports. On a disk that survives reboots.
        source: Where the repository is: a path or URL, or several that are tried in turn.
        root: The bytes of the first trusted `root.json`; None where the folder has it.
        device: The device's name; None for the one that it was enrolled with, else the host's.
        device_class: Its class; None for the one that it was enrolled with.
        options: How patient it is, and what it demands.
        transport: How documents travel; None for the one of the first source's URL.
        doorbell: An MQTT broker that tells this device to look, `mqtt://…` or `mqtts://…`; None: it polls.
        clock: The wall clock, in seconds since 1970.
        probe: Measures the device.
        checker: Tries models; None for a child process.
        trust: Says which releases are genuine; None for the repository's signed metadata.
        blobs: The store of files.
        fetcher: Brings files.

    Raises:
        AgentBusyError: Another agent works in this folder.
        FleetError: The folder, the root or the source cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        source: str | Sequence[str],
        root: bytes | None = None,
        device: str | None = None,
        device_class: str | None = None,
        options: AgentOptions | None = None,
        transport: Transport | None = None,
        doorbell: str | None = None,
        clock: Callable[[], float] = time.time,
        probe: Probe | None = None,
        checker: Checker | None = None,
        trust: Trust | None = None,
        blobs: Blobs | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        path = Path(folder).absolute()
        path.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(path)
        try:
            sources = (source,) if isinstance(source, str) else tuple(source)
            options = options or AgentOptions()
            probe = probe or SystemProbe()
            identity = Identity.at(path, device, device_class)
            journal, generations = Journal(path), Generations(path)
            state, lost = load_state(journal, generations, int(clock()))
            device_clock = DeviceClock(state.floors.time, wall=clock, max_jump_s=options.max_jump_s)
            if trust is None:
                trust = TrustedRepository(path / "metadata", sources, root=root, clock=device_clock.now)
            if blobs is None:
                blobs = BlobStore(path / "blobs")
            if fetcher is None:
                assert isinstance(blobs, BlobStore)
                fetcher = Downloader(blobs, open_locations(sources), rate=options.download_rate or None)
            name = identity.device
            transport = transport or open_transport(sources[0], device=name, key=identity.key_bytes)
            transport = with_doorbell(transport, doorbell, name)
        except BaseException:
            os.close(self._lock)
            raise
        self._stop = threading.Event()
        self.device = Device(
            root=path,
            identity=identity,
            options=options,
            journal=journal,
            state=state,
            generations=generations,
            spool=Spool(path / "spool.db"),
            trust=trust,
            blobs=blobs,
            fetcher=fetcher,
            transport=transport,
            checker=checker or ProcessChecker(probe, may_lack=options.may_lack, nice=options.nice),
            probe=probe,
            clock=device_clock,
            alive=self._alive,
        )
        self._desire, self._watcher = Desire(self.device), Watcher(self.device)
        self._outbox = Outbox(self.device)
        self._lost = lost
        self._started = False
        self._failures = 0

    @property
    def phase(self) -> Phase:
        """Where the update stands; IDLE where there never was one."""
        update = self.device.state.update
        return Phase.IDLE if update is None else update.phase

    def status(self) -> AgentStatus:
        """Return what the device runs and what the agent does."""
        return AgentStatus.of(self.device.root)

    def step(self) -> Phase:
        """Do one thing: look for assignments, or take the update one phase further.

        It may take long (a download, the trial of a model). What has failed is tried again by the next step.

        Returns:
            The phase after it.

        Raises:
            OSError: The disk of the device is full or broken.
        """
        if not self._started:
            begin(self.device, lost=self._lost)
            check_running(self.device)
            self._started = True
        self._watcher.look()
        if not self._desire.look():
            advance(self.device)
        self._outbox.work()
        return self.phase

    def run(self, *, until_idle: bool = False) -> Phase:
        """Work until SIGTERM or `stop`.

        Args:
            until_idle: Return as soon as there is nothing to do, or nothing goes on.

        Returns:
            The phase at the end.
        """
        with self._stopping_on_signals():
            while not self._stop.is_set():
                try:
                    self._import_if_asked()
                    phase = self.step()
                except OSError as error:  # of this device's disk: serving goes on, and so does trying
                    _LOG.error("the disk: %s", error)
                    self._failures += 1
                    phase = self.phase
                else:
                    self._failures = self._failures + 1 if self.device.waiting else 0
                idle = phase.final and not self._failures
                if until_idle and (idle or self._failures >= _PATIENCE):
                    break
                self._wait(self._pause(phase))
        self.close()
        return self.phase

    def _wait(self, seconds: float) -> None:
        """Wait, but not longer than it takes to be stopped, to be rung for, or to be asked for an import."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stop.is_set():
            if self.device.transport.wait(min(left, _SLICE_S)):
                self._desire.ring()
                return
            if import_is_requested(self.device.root):
                return

    def import_from(self, source: str) -> Phase:
        """Update from another source, such as a mounted USB stick, until there is nothing to do.

        Raises:
            FleetError: It is no repository.
        """
        device, desire, failures = self.device, self._desire, 0
        with source_of(device, source):
            self._desire = Desire(device)
            try:
                phase = self.step()
                while not phase.final and failures < _PATIENCE and not self._stop.is_set():
                    if phase is Phase.SOAKING:
                        self._stop.wait(device.options.tick_s)
                    failures = failures + 1 if device.waiting else 0
                    phase = self.step()
            finally:
                self._desire = desire
        return phase

    def _import_if_asked(self) -> None:
        source = requested_import(self.device.root)
        if source is None:
            return
        try:
            self.import_from(source)
        except FleetError as error:
            _LOG.error("import from %s: %s", source, error)
            self.device.note("import", str(error))

    def stop(self) -> None:
        """Let `run` return soon."""
        self._stop.set()

    def close(self) -> None:
        """Note that this end is in order, and let go of the folder. Closing twice is allowed."""
        if self._lock < 0:
            return
        device = self.device
        if self._started:
            with contextlib.suppress(OSError):  # then the next start counts it as a crash
                self._watcher.look()
                boots = attrs.evolve(device.state.boots, clean=True)
                device.save(attrs.evolve(device.state, boots=boots))
        device.spool.close()
        device.transport.close()
        os.close(self._lock)
        self._lock = -1

    def _pause(self, phase: Phase) -> float:
        """Return how long to wait before the next step."""
        options = self.device.options
        if self._failures:
            longest = min(_MAX_BACKOFF_S, 2.0 ** min(self._failures, 10))
            return longest * random.uniform(0.5, 1.0)  # noqa: S311 (spreads a fleet, hides nothing)
        if phase is Phase.SOAKING:
            return options.tick_s
        if phase.final:
            return options.poll_s * random.uniform(0.8, 1.2)  # noqa: S311
        return 0.0

    def _alive(self) -> None:
        if self.device.transport.wait(0.0):  # an abort reaches a device that is installing, too
            self._desire.ring()
        if self._stop.is_set() or self._desire.changed():
            raise Interrupted

    @contextlib.contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(_signal: int, _frame: FrameType | None) -> None:
            self._stop.set()

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
