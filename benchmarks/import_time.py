"""What `import edgeinfer` adds to `import numpy`, and whether it loads a vendor's package.

    python benchmarks/import_time.py [--rounds 15]

Prints medians over fresh interpreters that take turns; the limit is 60 ms.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

HEAVY = (
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "rich",
)


def seconds(statement: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    numpy, both = [], []
    for _ in range(rounds):
        numpy.append(seconds("import numpy"))
        both.append(seconds("import numpy, edgeinfer"))
    added = (statistics.median(both) - statistics.median(numpy)) * 1e3
    print(f"import numpy {statistics.median(numpy) * 1e3:.0f} ms; edgeinfer adds {added:.1f} ms (limit 60)")
    listing = f"import sys, edgeinfer; print([name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", listing], check=True, capture_output=True, text=True
    ).stdout.strip()
    print(f"heavy packages loaded by import edgeinfer: {loaded} (wanted: [])")


if __name__ == "__main__":
    main()
