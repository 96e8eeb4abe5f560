"""A repository in an object store of fsspec: published to it, and read from it by a device."""

from __future__ import annotations

import uuid

import pytest

from edgeinfer.fleet.device.blobs import BlobStore
from edgeinfer.fleet.device.download import Downloader
from edgeinfer.fleet.device.locations import FsspecLocation, open_location
from edgeinfer.fleet.errors import LocationError, MissingFileError
from edgeinfer.fleet.operator.storage import open_storage
from tests.fleet.toy_fleet import ToyFleet

DATA = bytes(range(256)) * 1000


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4()}/fleet"


def test_a_device_installs_what_was_published_to_a_store(tmp_path, url):
    toy = ToyFleet(tmp_path, storage=open_storage(url))
    release = toy.publish("m", "1", {"model.bin": DATA})
    device = toy.device(source=url)
    device.refresh()
    found = device.release("m", "1", release.digest)
    store = BlobStore(tmp_path / "blobs")
    blobs = found.blobs_for(found.variants[0])
    fetched = Downloader(store, [open_location(url)]).fetch(blobs)
    assert fetched.moved_bytes == len(DATA)
    with store.open(blobs[0].digest) as file:
        assert file.read() == DATA


def test_a_download_from_a_store_goes_on_where_it_was(tmp_path, url):
    toy = ToyFleet(tmp_path, storage=open_storage(url))
    (blob,) = toy.publish("m", "1", {"model.bin": DATA}).variants[0].blobs
    store = BlobStore(tmp_path / "blobs")
    place = store.partial(blob.digest)
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA[:100_000])
    fetched = Downloader(store, [open_location(url)]).fetch([blob])
    assert fetched.moved_bytes == len(DATA) - 100_000
    with store.open(blob.digest) as file:
        assert file.read() == DATA


def test_what_a_store_does_not_have_or_know_is_said(url):
    location = open_location(url)
    assert isinstance(location, FsspecLocation)
    with pytest.raises(MissingFileError):
        location.open("metadata/timestamp.json")
    with pytest.raises(LocationError, match="not known"):
        open_location("nonsense://x")
