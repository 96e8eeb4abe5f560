"""How documents reach a device and reports leave it: the contract, and the ways that are built in.

Other ways are found by the entry points of the group `edgeinfer.transports` (a URL's scheme: a class that is
made with the URL, the device's name and its key).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, final
from urllib.parse import urlsplit

from edgeinfer.backends.entry_points import points_of
from edgeinfer.fleet.device.assignment import MAX_ASSIGNMENTS_BYTES
from edgeinfer.fleet.device.desired import Desired
from edgeinfer.fleet.device.http_transport import HttpTransport
from edgeinfer.fleet.device.local_files import read_bounded, replace_file
from edgeinfer.fleet.device.locations import FolderLocation, open_location
from edgeinfer.fleet.errors import TransportError

__all__ = ["Desired", "FolderTransport", "MemoryTransport", "Transport", "open_transport"]

GROUP = "edgeinfer.transports"


class Transport(Protocol):
    """Carries documents. It is trusted with nothing: what it brings is verified, what it takes is signed."""

    def desired(self, etag: str | None) -> Desired | None:
        """Return the assignments; None where they are those of `etag`, or there are none.

        Raises:
            TransportError: Not now.
        """
        ...

    def send(self, reports: Sequence[bytes]) -> int:
        """Hand reports over, and return how many of the first were accepted.

        Raises:
            TransportError: Not now.
        """
        ...

    def wait(self, seconds: float) -> bool:
        """Wait; return True as soon as there may be something new."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@final
class MemoryTransport:
    """In one process, for tests and simulators."""

    def __init__(self) -> None:
        self.document: bytes | None = None
        self.reports: list[bytes] = []
        self._bell = threading.Event()

    def put(self, document: bytes) -> None:
        """Make these the desired assignments, and ring."""
        self.document = document
        self._bell.set()

    def desired(self, etag: str | None) -> Desired | None:
        """See `Transport`."""
        return None if self.document is None else _unless(etag, self.document)

    def send(self, reports: Sequence[bytes]) -> int:
        """See `Transport`."""
        self.reports += reports
        return len(reports)

    def wait(self, seconds: float) -> bool:
        """See `Transport`."""
        rang = self._bell.wait(seconds)
        self._bell.clear()
        return rang

    def close(self) -> None:
        """Nothing to let go of."""


@final
class FolderTransport:
    """A repository's folder: on this device, mounted, or a USB stick.

    Reports are files that are only ever created; a folder that cannot be written keeps none.

    Args:
        folder: Of the repository.
        device: The device's name.
        sleep: How to wait between two looks.
    """

    def __init__(self, folder: Path, device: str, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self._desired = folder / "desired" / f"{device}.json"
        self._reports = folder / "reports" / device
        self._folder = folder
        self._sleep = sleep

    def desired(self, etag: str | None) -> Desired | None:
        """See `Transport`."""
        if not self._folder.is_dir():
            raise TransportError("The repository's folder is not there.", where=str(self._folder))
        try:
            data = read_bounded(self._desired, MAX_ASSIGNMENTS_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise TransportError(
                "The assignments cannot be read.", where=str(self._desired), found=str(error)
            ) from error
        return _unless(etag, data)

    def send(self, reports: Sequence[bytes]) -> int:
        """See `Transport`."""
        accepted = 0
        if not self._folder.is_dir():  # unmounted: what is written to the mount point is lost
            raise TransportError("The repository's folder is not there.", where=str(self._folder))
        try:
            self._reports.mkdir(parents=True, exist_ok=True)
            for report in reports:
                path = self._reports / f"{hashlib.sha256(report).hexdigest()}.json"
                if not path.exists():
                    replace_file(path, report, durable=True)
                accepted += 1
        except OSError as error:
            if not accepted:
                raise TransportError(
                    "Reports cannot be written.", where=str(self._reports), found=str(error)
                ) from error
        return accepted

    def wait(self, seconds: float) -> bool:
        """Look for a change of the document once a second."""
        before, end = self._stamp(), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._sleep(min(1.0, left))
            if self._stamp() != before:
                return True
        return False

    def close(self) -> None:
        """Nothing to let go of."""

    def _stamp(self) -> object:
        with contextlib.suppress(OSError):
            status = self._desired.stat()
            return status.st_mtime_ns, status.st_ino, status.st_size
        return None


def open_transport(url: str, *, device: str, key: bytes) -> Transport:
    """Return the transport of a URL: of an entry point; else a path or `file:` is a folder, HTTP(S) a server.

    Raises:
        TransportError: No installed package has a transport for its scheme.
    """
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        location = open_location(url)
        assert isinstance(location, FolderLocation)
        return FolderTransport(location.folder, device)
    found = [point for point in points_of(GROUP) if point.name == parts.scheme]
    if found:
        module, _, name = found[0].value.partition(":")
        transport: Transport = getattr(importlib.import_module(module), name)(url, device=device, key=key)
        return transport
    if parts.scheme in ("http", "https"):
        return HttpTransport(url, device=device, key=key)
    raise TransportError(
        f"There is no transport for {parts.scheme!r}.",
        where=url,
        expected="a folder, an HTTP(S) URL, or a scheme of an installed transport",
        hint="Install the package that has it (entry points of the group edgeinfer.transports).",
    )


def _unless(etag: str | None, data: bytes) -> Desired | None:
    current = hashlib.sha256(data).hexdigest()
    return None if etag == current else Desired(data=data, etag=current)
