"""Reports that devices left as files in a repository's folder `reports/`."""

from __future__ import annotations

import logging
from pathlib import Path

from edgeinfer.fleet.device.reports import MAX_REPORT_BYTES
from edgeinfer.fleet.operator.storage import FolderStorage, Storage
from edgeinfer.fleet.operator.store.database import Database, chunks
from edgeinfer.fleet.operator.store.ingest import ingest
from edgeinfer.fleet.operator.store.ingested import Ingested

__all__ = ["collect"]

_BATCH = 500
_LOG = logging.getLogger(__name__)


def collect(database: Database, storage: Storage) -> Ingested:
    """Take in all reports that lie in a folder, and remove them.

    One that is killed in between takes some in twice, which changes nothing.

    Args:
        database: The store.
        storage: The repository's; reports of other places than a folder come over HTTP.
    """
    total = Ingested()
    if not isinstance(storage, FolderStorage):
        return total
    # A draft of a report that is being written has another ending, and is left alone.
    paths = (path for path in sorted((storage.folder / "reports").glob("*/*.json")) if path.is_file())
    for part in chunks(paths, _BATCH):
        documents = [_bounded(path) for path in part]
        found = ingest(database, documents)
        for refusal in found.refused:
            _LOG.warning("report of %s refused: %s", refusal.device or "an unknown device", refusal.reason)
        total += found
        for path in part:
            path.unlink(missing_ok=True)
    return total


def _bounded(path: Path) -> bytes:
    """Read a file; of one that is too large, as much as shows that it is."""
    with path.open("rb") as file:
        return file.read(MAX_REPORT_BYTES + 1)
