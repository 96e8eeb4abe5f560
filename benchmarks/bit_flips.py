"""Flip bits in an artifact, a signed release and the documents of a fleet: is each of them noticed?

    python benchmarks/bit_flips.py [FLIPS] [--seed 0]

FLIPS (1,000) bits are flipped one at a time at random places, each file as often as any other: half of them
in an artifact, which `Artifact.open` reads; a third in a repository with two releases, which is read as a
device does, from the root of trust to the last byte; the rest in assignments, reports and the journal of a
device. A flip is *noticed* when a typed error comes out, and *without effect* when what was read is equal to
what was written in every field, such as white space in JSON. Anything else is *missed*, and printed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import edgeinfer as ei
from edgeinfer.errors import EdgeInferError
from edgeinfer.fleet.device.assignment import verify_assignments
from edgeinfer.fleet.device.journal import Journal
from edgeinfer.fleet.device.reports import Report
from edgeinfer.fleet.operator.verify import verify
from tests.fleet.toy_fleet import ToyFleet
from tests.fuzz import seeds

Read = Callable[[], object]


def artifact(folder: Path) -> tuple[list[Path], Read]:
    """Save an artifact with golden values and a cost."""
    made = ei.compile(seeds.model(), "onnxruntime")
    golden = made.with_golden(seeds.FEEDS[0], {"y": np.ones((1, 4, 2, 2), np.float32)}, rtol=0.1, atol=9)
    golden.with_cost(ei.artifact.manifest.Cost(latency_p50_ms=1.5)).save(folder / "a.edge")

    def read() -> object:
        opened = ei.Artifact.open(folder / "a.edge")
        files = {name: bytes(opened.payload.view(name)) for name in opened.payload.files}
        arrays = {name: array.tobytes() for name, array in opened.manifest.golden.outputs.items()}
        return files, arrays, str(opened.manifest), opened.digest

    return sorted((folder / "a.edge").iterdir()), read


def release(folder: Path) -> tuple[list[Path], Read]:
    """Publish two releases, one of which was withdrawn for a class."""
    fleet = ToyFleet(folder / "fleet")
    fleet.publish("m", "1", {"model.bin": bytes(range(256)), "labels.txt": b"a\nb\n"})
    fleet.publish("m", "2", {"model.bin": bytes(range(255, -1, -1))})
    root = fleet.keys.root

    def read() -> object:
        found = verify(fleet.public, root, clock=lambda: fleet.now)
        if found.problems:
            raise ei.errors.FleetError(found.problems[0])
        return found

    clean = str(read())
    files = []
    for path in sorted(path for path in fleet.public.rglob("*") if path.is_file()):
        hidden = path.rename(path.with_name("hidden"))
        try:
            needed = str(read()) != clean
        except EdgeInferError:
            needed = True
        hidden.rename(path)
        if needed:  # not the root that the device has already, nor metadata that newer has replaced
            files.append(path)
    return files, read


def documents(folder: Path) -> tuple[list[Path], Read]:
    """Write an assignment, a report and a journal."""
    folder.joinpath("state.json").write_bytes(seeds.device_journals()[1])
    folder.joinpath("assignment.json").write_bytes(seeds.assignments()[0])
    folder.joinpath("report.json").write_bytes(seeds.reports()[1])
    keys = seeds.assignment_keys()

    def read() -> object:
        data = folder.joinpath("assignment.json").read_bytes()
        floors = {"m": (1, 2)}
        return (
            verify_assignments(data, keys, device="d1", incarnation=3, floors=floors, now=1000),
            Report.from_bytes(folder.joinpath("report.json").read_bytes(), seeds.REPORT_KEY),
            Journal(folder).load(),
        )

    return sorted(folder.iterdir()), read


def flip(name: str, files: list[Path], read: Read, count: int, rng: random.Random) -> int:
    """Flip bits one at a time; return how many were missed."""
    begun = time.process_time()
    clean = read()
    found: Counter[str] = Counter()
    harmless: Counter[str] = Counter()
    for _ in range(count):
        path = rng.choice(files)
        data = path.read_bytes()
        place = rng.randrange(len(data) * 8)
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            same = read() == clean
        except EdgeInferError:
            found["noticed"] += 1
        else:
            found["without effect" if same else "missed"] += 1
            if same:
                harmless[_what(data[place // 8], changed[place // 8])] += 1
            elif found["missed"] <= 5:
                print(
                    f"MISSED in {path.name}, bit {place}: {data[max(place // 8 - 20, 0) : place // 8 + 20]!r}"
                )
        path.write_bytes(data)
    assert read() == clean
    seconds = time.process_time() - begun
    print(
        f"{name:10} {count:7,} flips in {len(files)} files: {found['noticed']:,} noticed, "
        f"{found['without effect']:,} without effect {dict(harmless)}, {found['missed']} missed; "
        f"{seconds:.0f} s of processor time",
        flush=True,
    )
    return found["missed"]


def _what(before: int, after: int) -> str:
    if chr(before).isspace() and chr(after).isspace():
        return "white space for white space"
    if chr(before).lower() == chr(after).lower():
        return "a letter in the other case"
    return f"{chr(before)!r} for {chr(after)!r}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("flips", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        os.environ["TMPDIR"] = tempfile.tempdir = scratch  # where `verify` keeps what it reads
        missed = 0
        for make, count in ((artifact, options.flips // 2), (release, options.flips // 3), (documents, 0)):
            folder = Path(scratch) / make.__name__
            folder.mkdir()
            count = count or options.flips - options.flips // 2 - options.flips // 3
            missed += flip(make.__name__, *make(folder), count, rng)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
