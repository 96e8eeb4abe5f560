"""The child process of `edgeinfer.runtime.memory`: reads a JSON request on stdin, answers JSON on stdout."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

__all__: list[str] = []


def _peak_bytes() -> int:
    # VmHWM belongs to this program image alone; ru_maxrss is inherited across exec from the parent on Linux.
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _as_declared(array: Any, dtype: Any) -> Any:
    """Undo what the file did to strings, and to dtypes that numpy does not have (they come as raw bytes)."""
    if array.dtype.kind == "U":
        return array.astype(object)
    return array.view(dtype) if array.dtype.kind == "V" else array


def main() -> int:
    """Run the request; the last line on stdout is the answer."""
    request = json.load(sys.stdin)
    answer: dict[str, object] = {}
    try:
        import numpy as np

        import edgeinfer as ei
        from edgeinfer.artifact.artifact import Artifact
        from edgeinfer.backends.registry import get_backend, require_available
        from edgeinfer.errors import EdgeInferError

        with np.load(request["feed"], allow_pickle=False) as archive:
            feed = {name: archive[name] for name in archive.files}
        manifest = json.loads((Path(request["artifact"]) / "manifest.json").read_bytes())
        require_available(get_backend(manifest["backend"]))  # imports the runtime
        answer["baseline_bytes"] = _peak_bytes()
        try:
            artifact = Artifact.open(request["artifact"])
            dtypes = {spec.name: spec.dtype for spec in artifact.signature.inputs}
            feed = {name: _as_declared(array, dtypes[name]) for name, array in feed.items()}
            with ei.load(artifact, device=request["device"], options=request["options"]) as session:
                answer["loaded_bytes"] = _peak_bytes()
                for _ in range(request["runs"]):
                    session.infer(feed)
                answer["peak_bytes"] = _peak_bytes()
        except EdgeInferError as error:
            answer["error"] = str(error)
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
