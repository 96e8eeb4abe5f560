"""`Fleet`: the operator's handle on a fleet."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from edgeinfer.budget import Budget
from edgeinfer.feeds.preprocessing import Preprocessing
from edgeinfer.fleet.device.predicate import Predicate
from edgeinfer.fleet.device.release import Release
from edgeinfer.fleet.errors import PublishError, UnknownReleaseError
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.assigning import StorageShelf, signer_of
from edgeinfer.fleet.operator.ceremonies import withdraw
from edgeinfer.fleet.operator.collecting import collect
from edgeinfer.fleet.operator.controller import Controller
from edgeinfer.fleet.operator.devices import Devices
from edgeinfer.fleet.operator.publisher import Publisher
from edgeinfer.fleet.operator.publishing import Lines, publish, published_releases
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.restoring import notice_restore
from edgeinfer.fleet.operator.rollout import Rollout
from edgeinfer.fleet.operator.sites import MaintenanceWindow, Site
from edgeinfer.fleet.operator.specification import AnyGate, Specification
from edgeinfer.fleet.operator.stages import Stage
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.ingest import ingest
from edgeinfer.fleet.operator.store.ingested import Ingested
from edgeinfer.fleet.operator.store.inventory import save_site
from edgeinfer.fleet.operator.store.releases import complete_digest, find_release, list_rollouts, remember
from edgeinfer.fleet.operator.store.retention import Retention
from edgeinfer.fleet.operator.variants import Artifacts, Tolerance

if TYPE_CHECKING:
    from edgeinfer.devices.profile import Target
    from edgeinfer.devices.remote.device import RemoteDevice
    from edgeinfer.fleet.operator.tuned import TunedRelease
    from edgeinfer.model.model import Model, ModelSource

__all__ = ["Fleet"]

_LOG = logging.getLogger(__name__)


@final
class Fleet:
    """The operator's handle on a fleet; a context manager. Made by `edgeinfer.fleet.open`.

    Args:
        repository: Where releases and documents are published.
        database: Where rollouts and reports are kept; see `open_fleet`. It is opened when it is first needed.
    """

    def __init__(self, repository: Repository, database: str) -> None:
        self.repository = repository
        self._database_url = database

    @functools.cached_property
    def database(self) -> Database:
        """The store."""
        return Database(self._database_url)

    @property
    def devices(self) -> Devices:
        """The inventory."""
        return Devices(self.database, self.repository)

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts, the oldest first."""
        return [Rollout(self.database, number) for number in list_rollouts(self.database)]

    def rollout(
        self,
        release: Release | str,
        *,
        stages: Sequence[Stage],
        gates: Sequence[AnyGate] = (),
        on_fail: str = "rollback",
        group: str = "",
        priority: int = 0,
        lease: str | int = "24h",
        retries: int = 2,
        alpha: float = 0.01,
    ) -> Rollout:
        """Plan a rollout. Nothing happens before its `start()`.

        Args:
            release: What `publish` returned, or the digest of a release.
            stages: In their order; `count` and `percent` are totals.
            gates: What must hold in each stage. A `FailureRate(max=0.05)` is added where there is none, and a
                limit of rejections.
            on_fail: `rollback` takes the release back when a gate fails; `pause` waits for an operator.
            group: Only devices of this group: `class=NAME`, `site=NAME` or `LABEL=VALUE`.
            priority: Of rollouts of one model, the one with the higher priority takes a device over.
            lease: How long a device may wait before it starts on its document.
            retries: How often a retryable failure is tried again on a device before it counts.
            alpha: The probability that the comparisons raise a false alarm, over the entire rollout.

        Raises:
            OptionsError: A value is refused, or a gate could not detect its own threshold in this fleet; the
                message has the number of devices that it needs.
            FleetError: The release is not known.
        """
        found = self._known(release)
        specification = Specification(
            stages=stages,
            gates=gates,
            on_fail=on_fail,
            priority=priority,
            lease=lease,
            retries=retries,
            alpha=alpha,
        )
        number = commands.draft(
            self.database,
            model=found["model"],
            release=found["digest"],
            specification=specification,
            scope=group,
        )
        return Rollout(self.database, number)

    def set_site(
        self,
        name: str,
        *,
        timezone: str = "UTC",
        windows: Sequence[MaintenanceWindow] = (),
        max_in_flight: int | None = None,
    ) -> Site:
        """Say when models may be switched at a site, and on how many devices at once; see `Site`."""
        site = Site(name=name, timezone=timezone, windows=windows, max_in_flight=max_in_flight)
        save_site(self.database, site)
        return site

    def quarantine(self, release: Release | str, *, device_class: str = "*", reason: str) -> None:
        """Withdraw a release: in rollouts, and in signed metadata, so that a USB stick brings it no more.

        Args:
            release: The release, or its digest.
            device_class: For devices of this class; `*` for all.
            reason: Why, for the audit log.
        """
        commands.quarantine(
            self.database, self._known(release)["digest"], device_class=device_class, reason=reason
        )
        self.withdraw(release, device_class=device_class)

    def ingest(self, documents: Sequence[bytes]) -> Ingested:
        """Take in reports as devices made them; what is refused stops nobody."""
        return ingest(self.database, documents)

    def collect(self) -> Ingested:
        """Take in the reports that devices left in the repository's folder `reports/`, and remove them."""
        return collect(self.database, self.repository.storage)

    @property
    def controller(self) -> Controller:
        """What moves rollouts on: one tick at a time."""
        publisher = Publisher(StorageShelf(self.repository.storage), signer_of(self.repository.keys))
        notice_restore(self.database, publisher, self.repository)
        return Controller(self.database, publisher)

    def tick(self) -> int:
        """Collect reports, move all rollouts on, publish documents; return how much there was to do."""
        return self.collect().applied + self.controller.tick()

    def run(self, *, interval: float = 5.0, stop: threading.Event | None = None) -> None:
        """Do `tick()` until `stop` is set.

        Args:
            interval: Seconds between two ticks.
            stop: Set by another thread; None runs without end.
        """
        stop = stop or threading.Event()
        controller, retention = self.controller, Retention(self.database)
        while not stop.is_set():
            self.collect()
            controller.tick()
            retention.step()
            stop.wait(interval)

    def close(self) -> None:
        """Close the store."""
        if "database" in self.__dict__:
            self.database.close()
            del self.__dict__["database"]

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find_release(self, digest: str) -> str:
        """Return the digest of the one release that begins so.

        Raises:
            UnknownReleaseError: There is none, or there are several.
        """
        return complete_digest(self.database, digest)

    def _known(self, release: Release | str) -> Mapping[str, Any]:
        """Return a release as the store has it."""
        if isinstance(release, Release):
            remember(self.database, release)
        digest = release.digest if isinstance(release, Release) else release
        found = find_release(self.database, digest)
        if found is None:
            raise UnknownReleaseError(
                "The store knows no such release.",
                found=digest,
                hint="Publish it, or pass the Release itself.",
            )
        return found

    @property
    def root(self) -> bytes:
        """The `root.json` that devices are given when they are made: their root of trust."""
        return self.repository.keys.root

    @property
    def source(self) -> str:
        """The location that devices can be given."""
        return self.repository.storage.url

    def releases(self, model: str) -> list[Release]:
        """Return the releases of a model, the oldest first."""
        return published_releases(self.repository, self.repository.state(), model)

    def publish(
        self,
        model: str,
        artifacts: Artifacts,
        *,
        golden: Any = None,
        interface: str | None = None,
        budget: Budget | Mapping[str, Budget] | None = None,
        version: str | None = None,
        needs: Mapping[str, Predicate] | None = None,
        preprocessing: Preprocessing | None = None,
        labels: Lines | None = None,
        thresholds: Mapping[str, float] | None = None,
        requires: str | None = None,
        tolerance: Tolerance | None = None,
    ) -> Release:
        """Publish one version of a model; see `edgeinfer.fleet.operator.publishing.publish`.

        Raises:
            PublishError: It waits for further signatures, or as there.
        """
        published = publish(
            self.repository,
            model,
            artifacts,
            golden=golden,
            interface=interface,
            budget=budget,
            version=version,
            needs=needs,
            preprocessing=preprocessing,
            labels=labels,
            thresholds=thresholds,
            requires=requires,
            tolerance=tolerance,
        )
        for note in published.notes:
            _LOG.info("%s", note)
        if published.missing:
            raise PublishError(
                "The release waits for further signatures.",
                where=f"{model} {published.release.version}",
                found=", ".join(f"{role}: {count} missing" for role, count in published.missing.items()),
                hint="Sign it where the keys are: edgeinfer fleet sign.",
                facts={"missing": dict(published.missing), "digest": published.release.digest},
            )
        remember(self.database, published.release)
        return published.release

    def publish_tuned(
        self,
        name: str,
        model: ModelSource,
        *,
        budgets: Mapping[str, Budget],
        targets: Mapping[str, Target | str],
        calibration: Any,
        evaluate: Callable[[Model], float] | None = None,
        on: Mapping[str, RemoteDevice] | None = None,
        options: Mapping[str, Any] | None = None,
        minutes: float | None = None,
        journal: str | os.PathLike[str] | None = None,
        progress: bool | None = None,
        **details: Any,
    ) -> TunedRelease:
        """Tune a model for each class of devices, and publish one release of what was found; see `tuned`.

        Args:
            name: The model's name in the fleet.
            model: The float model, as for `edgeinfer.tune`.
            budgets: The limits, by device class. They become the needs of the variants: devices hold their
                variant to them before and after it is activated, and a `Constraint` gate reads them.
            targets: The target of each class.
            calibration: Representative feeds; also the golden feeds, unless `golden` is given.
            evaluate: From a Model to a metric of which more is better.
            on: Devices of `devices.connect` to measure on, by class. Others are measured here.
            options: Options of the backends that all candidates have, such as `{"threads": 1}`.
            minutes: How long tuning may take for one class.
            journal: A folder for the journals of tuning, so that it goes on where it was interrupted.
            progress: As for `edgeinfer.tune`.
            details: Further arguments of `publish`, such as `interface` and `labels`.

        Raises:
            BudgetError: A class's budget cannot be met; nothing is published. The error says what would help.
            OptionsError: A class has no target.
            PublishError: As for `publish`.
        """
        from edgeinfer.fleet.operator.tuned import publish_tuned

        return publish_tuned(
            self.publish,
            name,
            model,
            budgets=budgets,
            targets=targets,
            calibration=calibration,
            evaluate=evaluate,
            on=on or {},
            options=options,
            minutes=minutes,
            journal=journal,
            progress=progress,
            details=details,
        )

    def withdraw(self, release: Release | str, *, device_class: str = "*") -> None:
        """Withdraw a release from a class of devices, or from all.

        Args:
            release: The release, or its digest.
            device_class: The class; `*` for all.
        """
        digest = release.digest if isinstance(release, Release) else release
        missing = withdraw(self.repository, digest, device_class=device_class)
        if missing:
            raise PublishError("The withdrawal waits for further signatures.", facts={"missing": missing})
