"""`Floors`: the least versions of metadata, and the least time, that a device still believes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

import attrs

from edgeinfer.artifact.decode import DecodeError, decode, encode
from edgeinfer.atomic import write_file
from edgeinfer.fleet.device.documents import canonical_json
from edgeinfer.fleet.errors import RollbackError
from edgeinfer.plain_json import parse_json
from edgeinfer.values import as_tuple

__all__ = ["Floors", "read_floors", "write_floors"]

_FILE = "floors.json"


@final
@attrs.frozen(kw_only=True)
class Floors:
    """What was seen in verified metadata.

    Attributes:
        versions: The highest version by role.
        time: The latest time that metadata was signed at, in seconds since 1970 UTC.
        online: The ids of the keys of the roles `timestamp` and `snapshot`.
        lost: Whether the file that held them was damaged: then older metadata may pass once.
    """

    versions: Mapping[str, int] = attrs.field(factory=dict)
    time: int = 0
    online: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    lost: bool = attrs.field(default=False, metadata={"json": False})

    def raised(self, other: Floors) -> Floors:
        """Return the higher floor of each role."""
        names = {**self.versions, **other.versions}
        versions = {name: max(self.versions.get(name, 0), other.versions.get(name, 0)) for name in names}
        return attrs.evolve(
            self, versions=versions, time=max(self.time, other.time), online=other.online or self.online
        )

    def rotated(self, online: tuple[str, ...], root: int) -> bool:
        """Whether a later root has replaced an online key."""
        return bool(self.online) and self.online != online and root > self.versions.get("root", 0)

    def checked(self, seen: Floors, *, where: str) -> Floors:
        """Return the floors after metadata was seen.

        When the root has replaced an online key, the versions and the time that the old key signed count no
        more: whoever stole it may have signed ones that cannot be surpassed (TUF specification, 5.3.11).

        Raises:
            RollbackError: Something is older than it was.
        """
        if self.rotated(seen.online, seen.versions["root"]):
            return seen
        for role, least in self.versions.items():
            if seen.versions.get(role, 0) < least:
                raise RollbackError(
                    "A location gave older metadata than was seen before.",
                    where=f"{where}: {role}",
                    expected=f"version {least} or later",
                    found=f"version {seen.versions[role]}" if role in seen.versions else "none",
                )
        return attrs.evolve(seen, time=max(self.time, seen.time))


def read_floors(folder: Path) -> Floors:
    """Return the floors that a folder keeps; none, marked as `lost`, where the file is damaged."""
    try:
        return decode(Floors, parse_json((folder / _FILE).read_bytes()), skip_unknown=True)
    except FileNotFoundError:
        return Floors()
    except (DecodeError, ValueError):
        return Floors(lost=True)


def write_floors(folder: Path, floors: Floors) -> None:
    """Keep floors: synced, and never half written."""
    data = canonical_json(encode(floors))
    if not (folder / _FILE).is_file() or (folder / _FILE).read_bytes() != data:
        write_file(folder / _FILE, data)
