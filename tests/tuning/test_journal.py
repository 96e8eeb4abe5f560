"""The journal: what is in it was written to the end, and what was cut off is not there."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeinfer.errors import TuningError
from edgeinfer.tuning.journal import Journal, read_records

RECORDS = [{"kind": "start", "seed": 0}, {"kind": "made", "reason": 'ä "quoted"\n'}, {"kind": "end"}]


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path) as book:
        for record in RECORDS:
            book.append(record)
    return path


def test_what_was_written_is_read(journal):
    with Journal(journal) as book:
        assert book.records == RECORDS
        book.append({"kind": "more"})
    with Journal(journal) as book:
        assert book.records == [*RECORDS, {"kind": "more"}]


def test_cut_at_any_byte_the_complete_records_stay_and_the_rest_goes(journal, tmp_path):
    data = journal.read_bytes()
    for length in range(len(data) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(data[:length])
        whole = data[:length].count(b"\n")
        with Journal(path) as book:
            assert book.records == RECORDS[:whole]
            book.append({"kind": "next"})
        with Journal(path) as book:
            assert book.records == [*RECORDS[:whole], {"kind": "next"}]
        path.unlink()


@given(st.binary(max_size=60))
def test_any_bytes_are_records_or_an_error(data):
    try:
        records, length = read_records(data, where="here")
    except TuningError:
        return
    assert length <= len(data)
    assert all(isinstance(record, dict) for record in records)


def test_damage_before_the_end_is_an_error(journal):
    data = bytearray(journal.read_bytes())
    data[2] = 0xFF
    journal.write_bytes(data)
    with pytest.raises(TuningError, match="damaged") as caught:
        Journal(journal)
    assert "line 1" in str(caught.value)


def test_one_process_at_a_time(journal):
    code = (
        "from pathlib import Path; from edgeinfer.tuning.journal import Journal; "
        f"Journal(Path({str(journal)!r}))"
    )
    with Journal(journal):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "in use by another process" in done.stderr


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(TuningError, match="cannot be opened"):
        Journal(tmp_path)


def test_a_number_that_json_does_not_have_is_never_written(journal):
    before = journal.read_bytes()
    with Journal(journal) as book, pytest.raises(ValueError, match="JSON"):
        book.append({"kind": "made", "sqnr_db": float("nan")})
    assert journal.read_bytes() == before
