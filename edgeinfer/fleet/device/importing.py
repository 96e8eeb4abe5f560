"""A repository on a USB stick, handed to the agent that runs: by a small file in its folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from edgeinfer.fleet.device.blobs import BlobStore
from edgeinfer.fleet.device.device import Device
from edgeinfer.fleet.device.documents import canonical_json
from edgeinfer.fleet.device.download import Downloader
from edgeinfer.fleet.device.local_files import read_json, replace_file
from edgeinfer.fleet.device.locations import FolderLocation, open_location, open_locations
from edgeinfer.fleet.device.transport import open_transport
from edgeinfer.fleet.device.trust import TrustedRepository
from edgeinfer.fleet.errors import LocationError

__all__ = ["ask_for_import", "check_is_repository", "import_is_requested", "requested_import", "source_of"]


def check_is_repository(source: str | os.PathLike[str]) -> None:
    """Refuse what is mounted somewhere and holds no repository. URLs are not asked here.

    Raises:
        LocationError: It holds none.
    """
    location = open_location(source)
    if (
        isinstance(location, FolderLocation)
        and not (location.folder / "metadata" / "timestamp.json").is_file()
    ):
        raise LocationError(
            "There is no repository in this folder.",
            where=str(location.folder),
            expected="what `edgeinfer fleet export-usb` wrote",
            hint="Is the stick mounted?",
        )


def ask_for_import(folder: Path, source: str | os.PathLike[str]) -> None:
    """Ask the agent that works in a folder to update from a repository that is mounted somewhere."""
    (folder / "run").mkdir(exist_ok=True)
    request = canonical_json({"source": str(Path(source).absolute())})
    replace_file(folder / "run" / "import.json", request, durable=False)


def import_is_requested(folder: Path) -> bool:
    """Whether the agent is asked to update from somewhere."""
    return (folder / "run" / "import.json").exists()


def requested_import(folder: Path) -> str | None:
    """Return the repository that the agent is asked to update from, once."""
    path = folder / "run" / "import.json"
    try:
        source = read_json(path, 64 << 10)["source"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        source = None  # no request of ours
    path.unlink(missing_ok=True)
    return source if isinstance(source, str) else None


@contextlib.contextmanager
def source_of(device: Device, source: str) -> Iterator[None]:
    """Let a device take everything from another source meanwhile: documents, metadata, files.

    Raises:
        LocationError: It is no repository.
    """
    check_is_repository(source)
    before = device.trust, device.fetcher, device.transport
    assert isinstance(device.blobs, BlobStore)
    device.trust = TrustedRepository(device.root / "metadata", (source,), root=None, clock=device.clock.now)
    device.fetcher = Downloader(device.blobs, open_locations((source,)))
    device.transport = open_transport(source, device=device.identity.device, key=device.identity.key_bytes)
    try:
        yield
    finally:
        device.transport.close()
        device.trust, device.fetcher, device.transport = before
