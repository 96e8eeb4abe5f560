"""Downloads by digest: cuts, mirrors, misbehaving servers, deltas."""

from __future__ import annotations

import errno
import os
import random
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.fleet.device import delta as deltas
from edgeinfer.fleet.device.blobs import BlobStore, blob_path
from edgeinfer.fleet.device.delta import FORMAT, apply_delta, make_delta
from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.download import Downloader
from edgeinfer.fleet.device.locations import CHUNK_BYTES, open_location, open_locations, read_bytes
from edgeinfer.fleet.device.release import Blob, Delta
from edgeinfer.fleet.errors import (
    DeltaError,
    DigestMismatchError,
    DownloadError,
    LocationError,
    MissingFileError,
    StorageError,
)
from tests.fleet.http_server import serving

RNG = np.random.default_rng(0)
DATA = RNG.integers(0, 256, 1_000_003, dtype=np.uint8).tobytes()
BLOB = Blob(path="model.bin", size=len(DATA), digest=sha256(DATA))
PATH = f"blobs/{blob_path(BLOB.digest)}"


def put(folder, data: bytes):
    file = folder / "blobs" / blob_path(sha256(data))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


@pytest.fixture
def server(tmp_path):
    put(tmp_path / "public", DATA)
    with serving(tmp_path / "public") as found:
        yield found


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store")


def downloader(store, *sources, **options) -> Downloader:
    return Downloader(store, open_locations(list(sources)), **options)


def content(store, digest=BLOB.digest) -> bytes:
    with store.open(digest) as file:
        return file.read()


@pytest.mark.parametrize("kind", ["folder", "file", "http", "fsspec"])
def test_a_file_comes_from_any_location(tmp_path, server, store, kind):
    source = {
        "folder": tmp_path / "public",
        "file": (tmp_path / "public").as_uri(),
        "http": server.url,
        "fsspec": f"local://{tmp_path / 'public'}",
    }[kind]
    seen = []
    fetched = downloader(store, source).fetch([BLOB], progress=lambda *state: seen.append(state))
    assert content(store) == DATA
    assert (fetched.moved_bytes, fetched.whole) == (len(DATA), (BLOB.digest,))
    assert seen[-1] == (len(DATA), len(DATA))
    again = downloader(store, source).fetch([BLOB])
    assert (again.moved_bytes, again.reused) == (0, (BLOB.digest,))


def test_an_empty_file_needs_no_location(store):
    empty = Blob(path="e", size=0, digest=sha256(b""))
    downloader(store, "/nowhere").fetch([empty])
    assert content(store, empty.digest) == b""


@pytest.mark.parametrize("seed", range(8))
def test_cut_at_random_bytes_it_goes_on_where_it_was(server, store, seed):
    rng = random.Random(seed)
    server.cut = lambda _, left: rng.randrange(left + 1)
    cuts = 0
    while not store.has(BLOB.digest):
        try:
            downloader(store, server.url).fetch([BLOB])
        except LocationError:
            cuts += 1
            assert cuts < 100
    assert content(store) == DATA
    assert server.sent <= len(DATA) + cuts * CHUNK_BYTES


def test_it_goes_on_at_another_mirror(server, store, tmp_path):
    server.cut = lambda _, left: 300_000
    fetched = downloader(store, server.url, tmp_path / "public").fetch([BLOB])
    assert content(store) == DATA
    assert fetched.moved_bytes == len(DATA)
    assert "broke off" in fetched.notes[0] or "IncompleteRead" in fetched.notes[0]


def test_a_server_that_knows_no_ranges_starts_again(server, store):
    server.cut = lambda _, left: 300_000
    with pytest.raises(LocationError):
        downloader(store, server.url).fetch([BLOB])
    server.cut, server.ranges = None, False
    fetched = downloader(store, server.url).fetch([BLOB])
    assert content(store) == DATA
    assert fetched.moved_bytes == len(DATA)


def test_a_content_that_changed_meanwhile_is_not_mixed(server, store):
    """The ETag changed, so that the server answers If-Range with all of the new content."""
    server.replaced[PATH] = b"x" * len(DATA)
    server.cut = lambda _, left: 300_000
    with pytest.raises(LocationError):
        downloader(store, server.url).fetch([BLOB])
    server.cut = None
    server.replaced.clear()
    fetched = downloader(store, server.url).fetch([BLOB])
    assert content(store) == DATA
    assert fetched.moved_bytes == len(DATA)


def test_wrong_bytes_from_the_first_to_the_last_are_not_asked_for_again_at_once(server, store):
    server.cut = lambda _, left: left // 2
    with pytest.raises(LocationError):
        downloader(store, server.url).fetch([BLOB])
    server.cut, server.sent = None, 0
    server.replaced[PATH] = bytes(len(DATA))  # of the right size, with another ETag: it comes from the start
    with pytest.raises(DigestMismatchError):
        downloader(store, server.url).fetch([BLOB])
    assert server.sent == len(DATA)


def test_a_wrong_prefix_without_an_etag_costs_one_more_download(server, store):
    server.etags = False
    server.replaced[PATH] = b"x" * len(DATA)
    server.cut = lambda _, left: 300_000
    with pytest.raises(LocationError):
        downloader(store, server.url).fetch([BLOB])
    server.cut = None
    server.replaced.clear()
    fetched = downloader(store, server.url).fetch([BLOB])
    assert content(store) == DATA
    assert fetched.moved_bytes <= 2 * len(DATA)


@pytest.mark.parametrize("wrong", [DATA[:-1] + b"\0", DATA + b"x", DATA[:-1], b"", b"x" * len(DATA)])
def test_wrong_bytes_are_never_accepted_and_another_mirror_is_tried(server, store, tmp_path, wrong):
    server.replaced[PATH] = wrong
    with pytest.raises(DigestMismatchError):
        downloader(store, server.url).fetch([BLOB])
    assert not store.has(BLOB.digest)
    downloader(store, server.url, tmp_path / "public").fetch([BLOB])
    assert content(store) == DATA


def test_nothing_is_read_beyond_the_size(server, store):
    server.endless.add(PATH)
    with pytest.raises(DigestMismatchError):
        downloader(store, server.url).fetch([BLOB])
    assert not list((store.folder / "partial").glob(BLOB.digest))
    assert server.sent < len(DATA) + (16 << 20)  # what fits into the sockets' buffers


def test_what_no_location_has_is_said(server, store, tmp_path):
    with pytest.raises(MissingFileError, match="No location"):
        downloader(store, tmp_path / "empty").fetch([BLOB])
    server.status[PATH] = 500
    with pytest.raises(LocationError):
        downloader(store, server.url, tmp_path / "empty").fetch([BLOB])
    with pytest.raises(LocationError):
        downloader(store, "http://127.0.0.1:9").fetch([BLOB])
    with pytest.raises(DownloadError):
        downloader(store).fetch([BLOB])


def test_asking_for_what_is_not_there_yet_costs_no_new_connection(server):
    """Each poll asks for a root.json that comes once a year: with TLS a connection costs a handshake."""
    (server.folder / "file").write_bytes(b"1234")
    location = open_location(server.url)
    for _ in range(5):
        with pytest.raises(MissingFileError):
            location.open("not-there")
        assert read_bytes(location, "file", max_bytes=10) == b"1234"
    assert server.connections == 1


def test_a_slow_server_is_given_up(store, tmp_path):
    class Slow:
        url = "slow"

        def open(self, path, *, offset=0, etag=""):
            opened = open_location(tmp_path / "public").open(path, offset=offset)
            return type(opened)(
                read=lambda _: opened.read(1),
                offset=opened.offset,
                size=opened.size,
                etag="",
                close=opened.close,
            )

    put(tmp_path / "public", DATA)
    now = iter(range(10**9))
    with pytest.raises(LocationError) as caught:
        Downloader(store, [Slow()], clock=lambda: next(now)).fetch([BLOB])
    assert "slow" in str(caught.value.__cause__)


def test_the_rate_is_bounded(server, store):
    slept = []
    now = [0.0]

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    downloader(store, server.url, rate=100_000, clock=lambda: now[0], sleep=sleep).fetch([BLOB])
    assert sum(slept) == pytest.approx(len(DATA) / 100_000)


def test_a_torn_prefix_after_a_power_cut_is_noticed(server, store):
    partial = store.partial(BLOB.digest)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA[:200_000] + bytes(100_000))
    fetched = downloader(store, server.url).fetch([BLOB])
    assert content(store) == DATA
    assert fetched.moved_bytes == 2 * len(DATA) - 300_000
    store.path(BLOB.digest).unlink()
    partial.write_bytes(DATA + b"more")
    downloader(store, server.url).fetch([BLOB])
    assert content(store) == DATA


def test_complete_but_not_yet_at_its_place(store):
    partial = store.partial(BLOB.digest)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA)
    assert downloader(store, "/nowhere").fetch([BLOB]).moved_bytes == 0
    assert content(store) == DATA


def test_a_full_disk_is_told(server, store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        downloader(store, server.url).fetch([BLOB])
    monkeypatch.undo()
    assert downloader(store, server.url).fetch([BLOB]).moved_bytes == 0


# -- deltas ------------------------------------------------------------------------------------------------

BASE = bytearray(DATA)
for _at in RNG.integers(0, len(DATA), 1000):
    BASE[_at] = (BASE[_at] + 1) % 256
BASE = bytes(BASE)


@pytest.fixture
def delta(server):
    packed = make_delta(BASE, DATA)
    put(server.folder, packed)
    return Delta(of=BLOB.digest, base=sha256(BASE), size=len(packed), digest=sha256(packed), format=FORMAT)


def test_a_device_with_the_base_takes_the_delta(server, store, delta):
    store.add(delta.base, BASE)
    fetched = downloader(store, server.url).fetch([BLOB], [delta])
    assert content(store) == DATA
    assert fetched.by_delta == (BLOB.digest,)
    assert fetched.moved_bytes == delta.size < len(DATA) / 50
    assert not store.has(delta.digest)


def test_the_base_may_be_elsewhere_on_the_device(server, store, delta, tmp_path):
    (tmp_path / "running").write_bytes(BASE)
    fetched = downloader(store, server.url).fetch([BLOB], [delta], bases={delta.base: tmp_path / "running"})
    assert fetched.by_delta == (BLOB.digest,)


def test_the_cheapest_of_several_is_taken(server, store, delta):
    other = make_delta(b"", DATA)
    put(server.folder, other)
    worse = Delta(of=BLOB.digest, base=sha256(b""), size=len(other), digest=sha256(other), format=FORMAT)
    store.add(worse.base, b"")
    store.add(delta.base, BASE)
    assert downloader(store, server.url).fetch([BLOB], [worse, delta]).moved_bytes == delta.size


@pytest.mark.parametrize("fault", ["no base", "format", "missing", "wrong bytes", "wrong base", "bomb"])
def test_the_entire_file_comes_where_a_delta_does_not_help(server, store, delta, fault, tmp_path):
    bases = {delta.base: tmp_path / "base"}
    (tmp_path / "base").write_bytes(BASE if fault != "wrong base" else BASE[::-1])
    if fault == "no base":
        bases = {}
    elif fault == "format":
        delta = Delta(of=delta.of, base=delta.base, size=delta.size, digest=delta.digest, format="later")
    elif fault == "missing":
        server.status[f"blobs/{blob_path(delta.digest)}"] = 404
    elif fault == "wrong bytes":
        server.replaced[f"blobs/{blob_path(delta.digest)}"] = bytes(delta.size)
    elif fault == "bomb":
        packed = make_delta(b"", bytes(64 << 20))
        put(server.folder, packed)
        delta = Delta(of=delta.of, base=delta.base, size=len(packed), digest=sha256(packed), format=FORMAT)
    fetched = downloader(store, server.url).fetch([BLOB], [delta], bases=bases)
    assert content(store) == DATA
    assert fetched.whole == (BLOB.digest,)
    assert bool(fetched.notes) == (fault not in ("no base", "format"))
    assert list(store.digests()) == [BLOB.digest]


def test_a_delta_that_is_cut_goes_on(server, store, delta):
    store.add(delta.base, BASE)
    server.cut = lambda _, left: min(left, 1000)
    cuts = 0
    while not store.has(BLOB.digest):
        try:
            downloader(store, server.url).fetch([BLOB], [delta])
        except LocationError:
            cuts += 1
    assert cuts == -(-delta.size // 1000) - 1
    assert server.sent == delta.size


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=3000), st.binary(max_size=200))
def test_a_delta_makes_the_file_from_any_base(base, head, tail):
    target = head + base[: len(base) // 2] + tail
    packed = make_delta(base, target, level=3)
    assert b"".join(apply_delta(BytesIO(base), BytesIO(packed), size=len(target))) == target
    with pytest.raises(DeltaError):
        b"".join(apply_delta(BytesIO(base), BytesIO(packed), size=len(target) + 1))


def test_deltas_longer_than_a_block(monkeypatch):
    monkeypatch.setattr(deltas, "_BLOCK", 1000)
    packed = make_delta(BASE, DATA)
    assert b"".join(apply_delta(BytesIO(BASE), BytesIO(packed), size=len(DATA))) == DATA


# -- the store ---------------------------------------------------------------------------------------------


def test_the_store_keeps_what_it_is_told_to(store):
    digests = [sha256(data) for data in (b"a", b"bb", b"ccc")]
    for digest, data in zip(digests, (b"a", b"bb", b"ccc"), strict=True):
        store.add(digest, data)
    store.partial("f" * 64).write_bytes(b"1234")
    assert sorted(store.digests()) == sorted(digests)
    assert store.collect([digests[0]]) == 2 + 3 + 4
    assert list(store.digests()) == digests[:1]


def test_the_store_takes_no_wrong_bytes(store):
    with pytest.raises(DigestMismatchError):
        store.add("0" * 64, b"a")
    assert not store.has("0" * 64)
    store.add(sha256(b"a"), b"a")
    assert store.verify(sha256(b"a"))
    store.path(sha256(b"a")).write_bytes(b"b")
    assert not store.verify(sha256(b"a"))
    assert not store.has(sha256(b"a"))


def test_a_file_is_placed_as_a_copy(store, tmp_path):
    store.add(BLOB.digest, DATA)
    store.place(BLOB.digest, tmp_path / "generations" / "1" / "model.bin")
    assert (tmp_path / "generations" / "1" / "model.bin").read_bytes() == DATA
    assert (tmp_path / "generations" / "1" / "model.bin").stat().st_nlink == 1
