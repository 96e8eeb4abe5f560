"""Cut a download at random bytes, N times, over real HTTP, and count the bytes that moved.

    python benchmarks/fleet/cut_downloads.py 1000

A file is downloaded again and again; each connection is cut after a random count of bytes, until N cuts were
made. Then N more with a hostile server: a tenth of its answers is another content with another ETag, half of
them complete, and a tenth is wrong in its second half and has no ETag. Fails if wrong bytes are accepted, or
if without hostility more moves than the size and a chunk a cut.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edgeinfer.fleet.device.blobs import BlobStore, blob_path  # noqa: E402
from edgeinfer.fleet.device.documents import sha256  # noqa: E402
from edgeinfer.fleet.device.download import Downloader  # noqa: E402
from edgeinfer.fleet.device.locations import CHUNK_BYTES, open_locations  # noqa: E402
from edgeinfer.fleet.device.release import Blob  # noqa: E402
from edgeinfer.fleet.errors import DigestMismatchError, LocationError  # noqa: E402
from tests.fleet.http_server import serving  # noqa: E402

SIZE = 2_000_003


def main(count: int) -> None:
    rng = random.Random(0)
    data = rng.randbytes(SIZE)
    blob = Blob(path="model.bin", size=SIZE, digest=sha256(data))
    path = f"blobs/{blob_path(blob.digest)}"
    totals = {"plain": [0, 0, 0], "hostile": [0, 0, 0]}  # downloads, cuts, bytes
    refused = wrong_bytes = wrong_answers = 0
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "public" / path
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
        with serving(Path(scratch) / "public") as server:
            for mode in ("plain", "hostile"):
                total = totals[mode]
                while total[1] < count:
                    store = BlobStore(Path(scratch) / mode / str(total[0]))
                    server.sent = cuts = 0
                    while not store.has(blob.digest):
                        server.cut = lambda _, left: rng.randrange(min(left, SIZE // 8) + 1)
                        server.replaced.clear()
                        server.etags = True
                        if mode == "hostile":
                            chance = rng.random()
                            if chance < 0.05:  # other bytes of the right size, all of them
                                server.replaced[path] = rng.randbytes(SIZE)
                                server.cut = None
                            elif chance < 0.1:  # another content, and with it another ETag
                                server.replaced[path] = rng.randbytes(SIZE)
                            elif chance < 0.2:
                                server.etags = False
                                server.replaced[path] = data[: SIZE // 2] + rng.randbytes(SIZE - SIZE // 2)
                            elif chance > 0.8:  # nothing is cut, so that it ends at all
                                server.cut = None
                        before = server.sent
                        try:
                            Downloader(store, open_locations(server.url)).fetch([blob])
                        except LocationError:
                            cuts += 1
                        except DigestMismatchError:
                            refused += 1
                        if server.replaced:
                            wrong_answers += 1
                            wrong_bytes += server.sent - before
                    with store.open(blob.digest) as found:
                        assert found.read() == data, "wrong bytes were accepted"
                    if mode == "plain":
                        assert server.sent <= SIZE + cuts * CHUNK_BYTES, (server.sent, cuts)
                    total[0] += 1
                    total[1] += cuts
                    total[2] += server.sent
    for mode, (downloads, cuts, moved) in totals.items():
        extra = moved - downloads * SIZE
        print(
            f"{mode}: {downloads} downloads of {SIZE} bytes, {cuts} cuts, {moved} bytes moved: "
            f"{extra / max(cuts, 1):.0f} bytes more a cut (a chunk is {CHUNK_BYTES}); wrong bytes accepted: 0"
        )
    print(f"wrong contents refused: {refused}")
    again = totals["hostile"][2] - totals["hostile"][0] * SIZE - wrong_bytes
    print(
        f"hostile, beyond the files: {wrong_bytes} bytes of {wrong_answers} wrong answers "
        f"({wrong_bytes / wrong_answers / SIZE:.2f} files each), and {again} right bytes once more, since "
        f"wrong ones had come before or behind them ({again / wrong_answers / SIZE:.2f} files each)"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
