"""An update on one core and in little memory, which the kernel enforces, while an application asks.

    python benchmarks/fleet/small_device.py [MEGABYTES…]

Needs control groups that may be written (version 1 or 2, as root).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fleet.device.cgroup import limited
from tests.fleet.device.small_device import update_on


def main() -> None:
    for megabytes in [int(text) for text in sys.argv[1:]] or [256]:
        with tempfile.TemporaryDirectory() as scratch, limited(megabytes << 20) as group:
            found = update_on(group, Path(scratch))
        mb = {name: f"{value / 1e6:.0f} MB" for name, value in found.bytes.items()}
        print(
            f"{megabytes} MiB, one core: {found.phase}; answered {found.answered}, "
            f"failed {len(found.failed)}; {found.killed} processes killed; peaks {mb}"
        )


if __name__ == "__main__":
    main()
