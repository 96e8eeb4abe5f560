"""What a controller does for each device must not cost more because there are many."""

from __future__ import annotations

import os
from pathlib import Path

from edgeinfer.fleet.operator.keys import KeyRing


def test_a_document_costs_the_same_beside_a_hundred_thousand_others(toy, monkeypatch):
    storage = toy.repository.storage
    storage.replace("desired/first.json", b"1")
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: scanned.append(Path(folder).name) or scandir(folder))
    storage.replace("desired/d.json", b"1")
    storage.replace("desired/d.json", b"2")
    assert storage.read("desired/d.json") == b"2"
    assert "desired" not in scanned
    assert storage.names("desired") == ["d.json", "first.json"]
    assert not list((toy.public / ".drafts").iterdir())


def test_the_key_ring_is_read_when_it_has_changed(toy, monkeypatch):
    reads = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read(path))
    for _ in range(3):
        toy.keys.signers(toy.keys.public("assignments"))
    assert reads.count("keyring.json") <= 1
    other = KeyRing(toy.keys.folder, lambda _: None)
    added = other.generate("assignments", encrypt=False)
    assert added.keyid in toy.keys.public("assignments")
