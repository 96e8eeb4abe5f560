"""List the benchmarks, or run one of them as a program of its own.

    python benchmarks/run.py                          # what there is, and what each measures
    python benchmarks/run.py quantization/floor --help

Each is also a script by itself. This one sees to it that the checkout, not an installed version, is measured.
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def benchmarks() -> dict[str, str]:
    """Return the first line about each script that is a program, by its name below this folder."""
    found = {}
    for path in sorted(HERE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path != Path(__file__).resolve() and 'if __name__ == "__main__":' in text:
            said = ast.get_docstring(ast.parse(text)) or ""
            found[str(path.relative_to(HERE).with_suffix(""))] = said.partition("\n")[0]
    return found


def main(arguments: list[str]) -> None:
    known = benchmarks()
    if not arguments or arguments[0] not in known:
        print(f"usage: python {sys.argv[0]} NAME [ARGUMENT …]\n")
        print("\n".join(f"{name:32} {what}" for name, what in known.items()))
        raise SystemExit(0 if not arguments or arguments[0] in ("-h", "--help") else 2)
    script = HERE / f"{arguments[0]}.py"
    sys.argv = [str(script), *arguments[1:]]
    sys.path[:0] = [str(folder) for folder in dict.fromkeys((script.parent, HERE, HERE.parent))]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
