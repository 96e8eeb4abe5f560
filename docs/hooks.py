"""What mkdocs does beside reading pages: lists of public names, and the notebooks of `examples/` as pages.

It imports nothing of edgeinfer: the site is built where only the extra `docs` is installed.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

__all__ = ["on_files", "on_page_markdown"]

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "examples"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, page, content=page_of_notebook(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the documentation of all public names of a module where a page says `<!-- api: MODULE -->`."""
    return re.sub(r"^<!-- api: ([\w.]+) -->$", lambda found: api_of(found[1]), markdown, flags=re.MULTILINE)


def api_of(module: str) -> str:
    """Return one block of mkdocstrings for each name in the `__all__` of a module."""
    names = [name for name in public_names(module) if not name.startswith("__")]
    modules = [name for name in names if _file_of(f"{module}.{name}") is not None]
    links = "".join(f"\n- `{module}.{name}`" for name in modules)
    blocks = "".join(f"\n\n::: {module}.{name}" for name in names if name not in modules)
    return (f"Modules:\n{links}\n" if links else "") + blocks


def public_names(module: str) -> list[str]:
    """Return the `__all__` of a module, read without importing it; upper and lower case are alike."""
    file = _file_of(module)
    assert file is not None, module
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value), key=str.lower)
    raise AssertionError(f"{module} has no __all__")


def _file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def page_of_notebook(path: Path) -> str:
    """Return a notebook with its stored outputs as Markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.strip():
            parts.append(f"```python\n{source}\n```")
            parts += [_output(output) for output in cell["outputs"]]
    ran = any(cell.get("outputs") for cell in cells)
    note = f"*This page is `examples/{path.name}`{' with the outputs of one run' if ran else ''}.*"
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n{note}\n{rest}\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="edgeinfer-output">\n{"".join(data["text/html"])}\n</div>'
    if "image/png" in data:
        encoded = "".join(data["image/png"]).replace("\n", "")
        source = f"data:image/png;base64,{encoded}"
        return f'<img alt="what the cell above draws" src="{source}">'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```"
