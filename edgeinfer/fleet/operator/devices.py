"""`Devices`: the inventory of a fleet."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from edgeinfer.display import Table
from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.enrolment import EnrolmentToken
from edgeinfer.fleet.operator.durations import format_duration, parse_duration
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.enrolment import create_token, forget_keys
from edgeinfer.fleet.operator.store.inventory import DeviceRow, add_devices, list_devices, remove_device

__all__ = ["Devices"]

_SHOWN = 12  # digits of a digest


@final
class Devices:
    """The devices of a fleet: what each is, what it is to run, and what it runs.

    Iterating gives one mapping a device and model: `device`, `device_class`, `site`, `labels`, `seen_at`,
    `flag`, `model`, `wanted` and `running` (digests), `version`, `phase`, `code`, and `recalled`: `withdrawn`
    or `rolled back` where that became of the wanted release, and a device that refused it keeps what it runs.

    Args:
        database: The fleet's store.
        repository: Where its documents are; needed for tokens and revocation.
    """

    def __init__(self, database: Database, repository: Repository | None = None) -> None:
        self._database = database
        self._repository = repository

    def add(
        self,
        device: str,
        *,
        device_class: str = "",
        site: str = "",
        labels: Mapping[str, str] | None = None,
        key: bytes | None = None,
        incarnation: int = 1,
    ) -> bytes:
        """Enrol a device, and return the key that its reports are signed with.

        Args:
            device: Its name.
            device_class: Its hardware class: canaries are compared, and gates judged, class by class.
            site: Where it stands.
            labels: Further facts that stages select by.
            key: Its key; None makes one.
            incarnation: Of its life.
        """
        row = DeviceRow(device=device, device_class=device_class, site=site, labels=labels or {}, key=key,
                        incarnation=incarnation)  # fmt: skip
        return add_devices(self._database, [row])[device]

    def remove(self, device: str) -> bool:
        """Remove a device; False if there is none. Where it was undecided it counts as WITHDRAWN."""
        return remove_device(self._database, device)

    def token(
        self,
        device: str,
        *,
        device_class: str = "",
        site: str = "",
        labels: Mapping[str, str] | None = None,
        lifetime: str | int = "24h",
    ) -> str:
        """Return a token that enrols a device once over HTTP; see `add` for the arguments.

        A device that is known begins a new life with it: its key and incarnation change.

        Args:
            device: Its name.
            device_class: Its hardware class.
            site: Where it stands.
            labels: Further facts that stages select by.
            lifetime: How long the token can be used, such as `24h`.
        """
        assert self._repository is not None
        root = self._repository.keys.root
        secret = create_token(self._database, device, device_class=device_class, site=site, labels=labels,
                              lifetime_s=parse_duration(lifetime))  # fmt: skip
        version = int(json.loads(root)["signed"]["version"])
        return str(EnrolmentToken(secret=secret, root_version=version, root_digest=sha256(root)))

    def revoke(self, device: str) -> bool:
        """Remove a device; its keys and tokens are void, its documents gone. False if it is unknown."""
        assert self._repository is not None
        removed = remove_device(self._database, device)
        forget_keys(self._database, device)
        self._repository.storage.remove(f"desired/{device}.json")
        return removed

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        with self._database.reading() as connection:
            return iter(list_devices(connection))

    def __len__(self) -> int:
        return len({row["device"] for row in self})

    def drifted(self) -> list[Mapping[str, Any]]:
        """Return the devices that do not run what they are to run; not those that were told nothing yet."""
        return [row for row in self if row["wanted"] is not None and row["wanted"] != row["running"]]

    def to_dict(self) -> dict[str, object]:
        """Return the rows as JSON-compatible values."""
        return {"devices": [dict(row) for row in self]}

    def table(self, rows: Sequence[Mapping[str, Any]] | None = None) -> Table:
        """Return one row a device and model.

        Args:
            rows: Only these, such as those of `drifted`.
        """
        now, found = time.time(), list(self) if rows is None else rows
        versions = {(row["model"], row["wanted"]): row["version"] for row in found if row["version"]}
        shown = [
            (
                row["device"],
                row["device_class"],
                row["site"],
                row["model"] or "",
                _is_to_run(row),
                _runs(row, versions),
                row["phase"] or "",
                " ".join(part for part in (row["code"], row["flag"]) if part),
                f"{format_duration(now - row['seen_at'])} ago" if row["seen_at"] else "never",
            )
            for row in found
        ]
        columns = ("device", "class", "site", "model", "is to run", "runs it", "phase", "code", "seen")
        return Table(title=f"{len(shown)} devices", columns=columns, rows=shown)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def _is_to_run(row: Mapping[str, Any]) -> str:
    wanted: str = row["version"] or (row["wanted"] or "")[:_SHOWN]
    return f"{wanted}, {row['recalled']}" if row["recalled"] else wanted


def _runs(row: Mapping[str, Any], versions: Mapping[tuple[str, str], str]) -> str:
    """Return whether a device runs what it is to run, and what else: a version, or the start of a digest."""
    running = row["running"]
    if not row["model"] or not running:
        return ""
    if row["wanted"] == running:
        return "yes"
    told = "no" if row["wanted"] is not None else "not told"
    return f"{told}: {versions.get((row['model'], running), running[:_SHOWN])}"
