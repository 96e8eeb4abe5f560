"""The catalog of device profiles: edgeinfer's own, installed distributions', and the user's.

A catalog is a TOML file with one table a device. edgeinfer's own are in `devices/data`; a distribution adds
one by an entry point of the group `edgeinfer.devices` whose object is the file's path; a user by a file
`devices.toml` in the configuration folder, by the variable `EDGEINFER_DEVICES`, or by `register`. See
`docs/devices.md` for the fields.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import attrs

from edgeinfer.devices.device_profile import DeviceProfile, Fact, PowerMode, Unit
from edgeinfer.display import Table
from edgeinfer.errors import EdgeInferError, TargetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["GROUP", "VARIABLE", "Profiles", "profiles", "read_catalog", "register"]

GROUP = "edgeinfer.devices"
VARIABLE = "EDGEINFER_DEVICES"
_FLAT = ("backend", "device", "precisions", "channel_multiple")
_TEXT = ("description", "source", "legacy", "successor", "note", "mode", "unit")
_TABLES = ("facts", "units", "modes", "runtimes")
_registered: list[Path] = []


@final
class Profiles(Mapping[str, DeviceProfile]):
    """Device profiles by name, read-only.

    It goes through the devices, one name each. Besides those it knows their other names, units
    (`intel-core-ultra-1:npu`) and power modes (`jetson-orin-nano@MAXN_SUPER`).

    Attributes:
        problems: Catalogs of installed distributions that cannot be used, and why.
    """

    def __init__(
        self,
        devices: Mapping[str, DeviceProfile],
        aliases: Mapping[str, str] | None = None,
        problems: tuple[str, ...] = (),
    ) -> None:
        self._devices = MappingProxyType(dict(devices))
        self._aliases = dict(aliases or {})
        self.problems = problems

    def __getitem__(self, name: str) -> DeviceProfile:
        meant = self._aliases.get(name, name)
        rest, at, mode = meant.partition("@")
        module, colon, unit = rest.partition(":")
        if module in self._aliases:
            found = self[self._aliases[module]]
        elif module in self._devices:
            found = self._devices[module]
        else:
            raise KeyError(name)
        if colon:
            found = found.on(unit)
        if at:
            found = found.in_mode(mode)
        return attrs.evolve(found, name=name)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self[name]
        except (KeyError, TargetError):
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)

    @property
    def aliases(self) -> Mapping[str, str]:
        """What other names stand for."""
        return MappingProxyType(self._aliases)

    def table(self) -> Table:
        """Return one row a device."""
        rows = [
            (
                profile.name,
                profile.description,
                ", ".join(f"{unit.name} ({unit.backend})" for unit in profile.units.values()),
                ", ".join(sorted(profile.precisions)),
                ", ".join(profile.modes),
                profile.legacy and f"legacy; see {profile.successor}",
            )
            for profile in self._devices.values()
        ]
        return Table(
            title="Device profiles",
            columns=("name", "device", "units", "precisions", "power modes", ""),
            rows=rows,
            footer="; ".join(self.problems),
        )

    def __repr__(self) -> str:
        return f"<Profiles {', '.join(self._devices)}>"

    def _repr_html_(self) -> str:
        return self.table().to_html()


def profiles() -> Profiles:
    """Return the device profiles: edgeinfer's own, then those of distributions, then the user's.

    A later one replaces an earlier one of the same name.

    Raises:
        TargetError: A catalog of the user's cannot be read.
    """
    own, aliases = _built_in()
    found = dict(own)
    plugins, problems = _installed(tuple(sys.path))
    found.update(plugins)
    for path in [*_user_files(), *_registered]:
        found.update(read_catalog(path.read_text(encoding="utf-8"), where=str(path)))
    return Profiles(found, aliases, problems)


def register(path: str | os.PathLike[str]) -> Profiles:
    """Add a catalog for this process.

    Args:
        path: The TOML file; see `docs/devices.md` for its fields.

    Returns:
        The profiles with those of the file.

    Raises:
        TargetError: It cannot be read, or is no catalog.
    """
    resolved = Path(path).resolve()
    read_catalog(_text(resolved), where=str(resolved))
    if resolved not in _registered:
        _registered.append(resolved)
    return profiles()


def read_catalog(
    text: str, *, where: str, sources: Mapping[str, str] | None = None
) -> dict[str, DeviceProfile]:
    """Read one catalog.

    Args:
        text: The TOML document.
        where: For error messages.
        sources: The texts that the keys in `src` stand for; a key that is not among them is a text itself.

    Raises:
        TargetError: It is no catalog.
    """
    try:
        tables = tomllib.loads(text)
        known = {**(sources or {}), **tables.pop("sources", {})}
        tables.pop("aliases", None)
        return {name: _profile(name, table, known) for name, table in tables.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TargetError(
            f"The catalog of devices cannot be read: {error}",
            where=where,
            hint="docs/devices.md describes the fields.",
        ) from error


def _profile(name: str, table: Any, sources: Mapping[str, str]) -> DeviceProfile:
    if not isinstance(table, Mapping):
        raise TypeError(f"{name!r} is not a table")
    unknown = sorted(set(table) - {*_FLAT, *_TEXT, *_TABLES, "memory_bytes"})
    if unknown:
        raise ValueError(
            f"{name!r} has no field {unknown[0]!r}; it has {', '.join((*_FLAT, *_TEXT, *_TABLES))}"
        )
    stated = table.get("source", "")
    facts = _facts(table.get("facts", {}), sources, stated)
    units = {key: _unit(key, fields, sources, stated) for key, fields in table.get("units", {}).items()} or {
        "main": _unit("main", {key: table[key] for key in _FLAT if key in table}, sources, stated, facts)
    }
    main = units[table.get("unit", next(iter(units)))]
    modes = {
        key: PowerMode(
            name=key,
            facts=_facts({k: v for k, v in fields.items() if k != "units"}, sources, stated),
            units={unit: _facts(inner, sources, stated) for unit, inner in fields.get("units", {}).items()},
        )
        for key, fields in table.get("modes", {}).items()
    }
    memory = facts.get("memory_bytes")
    return DeviceProfile(
        name=name,
        module=name,
        description=table["description"],
        memory_bytes=float(memory.value) if memory is not None else table.get("memory_bytes"),
        source=stated or "; ".join(dict.fromkeys(fact.source for fact in facts.values())),
        unit=main.name,
        backend=main.backend,
        device=main.device,
        precisions=main.precisions,
        channel_multiple=main.channel_multiple,
        units=units,
        modes=modes,
        facts=facts,
        runtimes=_facts(table.get("runtimes", {}), sources, stated),
        **{key: table[key] for key in ("legacy", "successor", "note", "mode") if key in table},
    )


def _unit(
    name: str, fields: Mapping[str, Any], sources: Mapping[str, str], stated: str, facts: Any = None
) -> Unit:
    given = {key: fields[key] for key in _FLAT if key in fields}
    own = _facts({key: value for key, value in fields.items() if key not in _FLAT}, sources, stated)
    return Unit(name=name, **given, facts={**(facts or {}), **own})


def _facts(fields: Mapping[str, Any], sources: Mapping[str, str], stated: str) -> dict[str, Fact]:
    found = {}
    for key, value in fields.items():
        if not isinstance(value, Mapping):
            found[key] = Fact(value=value, source=stated)
            continue
        if set(value) != {"v", "src", "how"}:
            raise ValueError(f"{key!r} needs v, src and how, or is a bare value")
        found[key] = Fact(value=value["v"], source=sources.get(value["src"], value["src"]), how=value["how"])
    return found


@cache
def _built_in() -> tuple[dict[str, DeviceProfile], dict[str, str]]:
    folder = files("edgeinfer.devices").joinpath("data")
    shared = tomllib.loads(folder.joinpath("sources.toml").read_text(encoding="utf-8"))
    found: dict[str, DeviceProfile] = {}
    for file in ("jetson", "nvidia", "intel", "arm", "x86"):
        text = folder.joinpath(f"{file}.toml").read_text(encoding="utf-8")
        found.update(read_catalog(text, where=f"{file}.toml", sources=shared["sources"]))
    return found, shared["aliases"]


@cache
def _installed(_path: tuple[str, ...]) -> tuple[dict[str, DeviceProfile], tuple[str, ...]]:
    """Return what distributions add, and which of them cannot be used: one that is broken breaks no other."""
    found: dict[str, DeviceProfile] = {}
    problems = []
    for point in metadata.entry_points(group=GROUP):
        owner = point.dist.name if point.dist is not None else "an unknown distribution"
        try:
            path = Path(os.fspath(point.load()))
            found.update(read_catalog(_text(path), where=str(path)))
        except Exception as error:
            text = error.what if isinstance(error, EdgeInferError) else f"{type(error).__name__}: {error}"
            problems.append(f"the device catalog {point.name!r} of {owner} is not used: {text}")
    return found, tuple(problems)


def _user_files() -> list[Path]:
    # As platformdirs.user_config_path on Linux (XDG base directory specification).
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    own = Path(base).expanduser() / "edgeinfer" / "devices.toml"
    named = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    for path in named:
        _text(path)  # a file that was named and is not there is an error
    return [*([own] if own.is_file() else []), *named]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(
            f"The catalog of devices cannot be read: {getattr(error, 'strerror', None) or error}.",
            where=str(path),
            expected=f"a TOML file, as {VARIABLE} or register() names it",
        ) from error
