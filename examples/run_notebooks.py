"""Run notebooks and store their outputs in them.

    python examples/run_notebooks.py                      all of this folder
    python examples/run_notebooks.py quickstart.ipynb     some

It needs the extra `test`. Each notebook runs in a folder of its own, with the interpreter that runs this.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def run(path: Path, kernels: Path, *, timeout_s: int = 900) -> None:
    """Execute a notebook from its first cell to its last, and write it with what its cells showed."""
    os.environ["JUPYTER_PATH"] = str(kernels)  # this interpreter's kernel, whatever is installed for the user
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=timeout_s, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this run: they would differ each time
        if cell.cell_type == "code":
            cell.outputs = [_lean(output) for output in cell.outputs if not _is_progress(output)]
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def _is_progress(output: nbformat.NotebookNode) -> bool:
    """Whether it is a progress bar of rich: it stays in the file when the work is done."""
    shown = output.get("data", {}).get("text/html", "")
    return output.output_type == "display_data" and "".join(shown).lstrip().startswith("<pre")


def _lean(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what repeats a picture or a table: the JPEG beside the PNG, the long repr beside the HTML."""
    data = output.get("data", {})
    if "image/png" in data:
        data.pop("image/jpeg", None)
    if "text/html" in data:
        data.pop("text/plain", None)
    return output


def main() -> None:
    named = [HERE / name for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as scratch:
        kernel = Path(scratch) / "kernels" / "python3"
        kernel.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        for path in named:
            started = time.monotonic()
            run(path, Path(scratch))
            print(f"{path.name}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
