"""Discovery of backends through the entry-point group `edgeinfer.backends`.

Listing imports nothing but this module. Only the backend that is asked for is imported. Two distributions
that register one name are both listed, and using the name is an error that names both. A plugin that fails
to import is listed with its reason, and raises only when it is used.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, final

import attrs

from edgeinfer.backends.entry_points import points_of
from edgeinfer.errors import (
    BackendUnavailableError,
    BrokenBackendError,
    DeviceError,
    DuplicateBackendError,
    EdgeInferError,
    UnknownBackendError,
)

if TYPE_CHECKING:
    from edgeinfer.backends.protocol import Backend, Capabilities
    from edgeinfer.display import Table

__all__ = [
    "GROUP",
    "BackendEntry",
    "Backends",
    "backends",
    "get_backend",
    "install_command",
    "reference_backend",
    "require_available",
]

GROUP = "edgeinfer.backends"


@final
@attrs.frozen(kw_only=True)
class BackendEntry:
    """One registered name.

    Attributes:
        name: The backend's name.
        values: What it points to (`module:attribute`), one a distribution; more than one is an error.
        distributions: The distributions that register it, each as `name version`.
    """

    name: str
    values: tuple[str, ...]
    distributions: tuple[str, ...]

    def load(self) -> Backend:
        """Import and create the backend; see `get_backend`."""
        return _load(self)

    def capabilities(self) -> Capabilities:
        """Return what it can do here. A broken plugin is an unavailable backend with a reason."""
        from edgeinfer.backends.protocol import Capabilities

        try:
            return self.load().capabilities()
        except EdgeInferError as error:
            return Capabilities(available=False, reason=str(error))
        except Exception as error:
            return Capabilities(
                available=False, reason=f"capabilities() raised {type(error).__name__}: {error}"
            )

    @property
    def available(self) -> bool:
        """Whether it can run something on this machine. Imports the backend."""
        return self.capabilities().available

    @property
    def reason(self) -> str:
        """Why it is not available; empty when it is. Imports the backend."""
        return self.capabilities().reason


@final
class Backends(Mapping[str, BackendEntry]):
    """The registered backends by name, read-only."""

    def __init__(self, entries: Mapping[str, BackendEntry]) -> None:
        self._entries = MappingProxyType(dict(entries))

    def __getitem__(self, name: str) -> BackendEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def table(self) -> Table:
        """Return one row a backend. Imports all of them."""
        from edgeinfer.display import Table

        rows = []
        for entry in self._entries.values():
            found = entry.capabilities()
            devices = ", ".join(device.name for device in found.devices)
            state = "available" if found.available else f"not available: {found.reason}"
            rows.append((entry.name, found.version, devices, state, ", ".join(entry.distributions)))
        return Table(title="Backends", columns=("name", "version", "devices", "state", "from"), rows=rows)

    def __repr__(self) -> str:
        return f"<Backends {', '.join(self._entries)}>"

    def _repr_html_(self) -> str:
        return self.table().to_html()


def backends() -> Backends:
    """List the registered backends. Imports none of them."""
    return _scan(tuple((path, _changed(path)) for path in sys.path))


def _changed(path: str) -> int:
    """Return when a folder's entries changed last, in ns: a distribution that comes or goes changes it."""
    try:
        return Path(path or ".").stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=4)
def _scan(installed: tuple[tuple[str, int], ...]) -> Backends:  # noqa: ARG001 (the key of the cache)
    found: dict[str, dict[str, str]] = {}
    for point in points_of(GROUP):
        found.setdefault(point.name, {})[point.distribution] = point.value
    return Backends(
        {
            name: BackendEntry(name=name, values=tuple(owners.values()), distributions=tuple(owners))
            for name, owners in sorted(found.items())
        }
    )


def get_backend(name: str) -> Backend:
    """Import the backend of that name.

    Raises:
        UnknownBackendError: Nothing is registered under the name.
        DuplicateBackendError: Two distributions register it.
        BrokenBackendError: It fails to import or is not a backend.
    """
    registered = backends()
    if name not in registered:
        raise UnknownBackendError(
            f"There is no backend {name!r}.",
            expected=f"one of {', '.join(registered) or 'none; is edgeinfer installed?'}",
            found=name,
            hint="Install the distribution that provides it, or correct the name.",
        )
    return registered[name].load()


def reference_backend() -> Backend:
    """Return the backend that models are looked into and judged with: the first that says it is a reference.

    Raises:
        BackendUnavailableError: None is here.
    """
    for entry in backends().values():
        found = entry.capabilities()
        if found.reference and found.available:
            return entry.load()
    raise BackendUnavailableError(
        "No backend here can be the reference that models are looked into with.",
        expected="one whose capabilities say `reference`, such as that of ONNX Runtime",
        found=", ".join(backends()) or "no backend",
        hint=f"Install one ({install_command('onnxruntime')}); `edgeinfer doctor` lists them.",
    )


def install_command(name: str) -> str:
    """Return what to type to install the runtime of a backend."""
    from importlib import metadata  # with its parser of e-mail it takes longer than all of this module

    extras = metadata.metadata("edgeinfer").get_all("Provides-Extra") or []
    if name in extras:
        return f'pip install "edgeinfer[{name}]"'
    if name == "onnxruntime":  # comes with the core
        return "pip install onnxruntime"
    entry = backends().get(name)
    owner = entry.distributions[0].split(" ")[0] if entry is not None else name
    return f"see the documentation of {owner}"


def require_available(backend: Backend) -> Capabilities:
    """Return a backend's capabilities.

    Raises:
        BackendUnavailableError: Its runtime is missing or does not work here.
        DeviceError: Its runtime is here, but no device that it could run on.
    """
    capabilities = backend.capabilities()
    if not capabilities.available and capabilities.version and not capabilities.devices:
        raise DeviceError(
            f"Backend {backend.name!r} has no device to run on here.",
            expected="at least one device",
            found=capabilities.reason,
            hint="Run where there is one, or compile for another backend; `edgeinfer doctor` lists them.",
        )
    if not capabilities.available:
        raise BackendUnavailableError(
            f"Backend {backend.name!r} is not available here.",
            found=capabilities.reason,
            hint=f"Install it ({install_command(backend.name)}), or choose another backend; "
            "`edgeinfer doctor` lists them.",
        )
    return capabilities


@functools.cache
def _load(entry: BackendEntry) -> Backend:
    from edgeinfer.backends.protocol import API_VERSION, Backend

    if len(entry.distributions) > 1:
        raise DuplicateBackendError(
            f"Backend {entry.name!r} is registered by more than one distribution.",
            found=" and ".join(entry.distributions),
            hint="Uninstall all but one of them.",
            facts={"distributions": entry.distributions},
        )
    where = f"{entry.values[0]} from {entry.distributions[0]}"
    try:
        module, _, attribute = entry.values[0].partition(":")
        made = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        backend = made() if isinstance(made, type) else made
    except EdgeInferError:
        raise
    except Exception as error:
        raise BrokenBackendError(
            f"Backend {entry.name!r} cannot be loaded: {type(error).__name__}: {error}",
            where=where,
            hint="Upgrade or uninstall that distribution.",
        ) from error
    if not isinstance(backend, Backend):
        raise BrokenBackendError(
            f"What is registered as {entry.name!r} is not a backend.",
            where=where,
            expected="name, api_version, capabilities, compile, load",
            found=type(backend).__name__,
        )
    if backend.api_version != API_VERSION:
        raise BrokenBackendError(
            f"Backend {entry.name!r} was written for another version of the backend interface.",
            where=where,
            expected=API_VERSION,
            found=backend.api_version,
            hint="Upgrade edgeinfer or that distribution.",
        )
    return backend
