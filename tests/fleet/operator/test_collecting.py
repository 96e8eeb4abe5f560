"""Reports that lie in a repository's folder."""

from __future__ import annotations

import logging

from edgeinfer.fleet.operator.collecting import collect
from edgeinfer.fleet.operator.storage import FolderStorage
from edgeinfer.fleet.operator.store.database import Database


def test_a_report_that_is_refused_is_told_and_removed(tmp_path, caplog):
    file = tmp_path / "repository" / "reports" / "camera" / "1.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no report")
    database = Database(str(tmp_path / "fleet.db"))
    with caplog.at_level(logging.WARNING):
        found = collect(database, FolderStorage(tmp_path / "repository"))
    database.close()
    assert (found.applied, len(found.refused)) == (0, 1)
    assert "refused" in caplog.text
    assert not file.exists()
