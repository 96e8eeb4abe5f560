"""Draw docs/layers.svg, the picture of the architecture, from the order that tests/test_layers.py checks."""

from __future__ import annotations

import ast
import textwrap
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["draw"]

ROOT = Path(__file__).parents[1]
# What the layers are for, by the first name in each, in the order of the test.
PURPOSE = {
    "errors": "the ground: errors and frozen values",
    "svg": "the parts of pictures",
    "display": "tables, charts, atomic files; attrs and numpy alone",
    "budget": "the limits that everything is held to",
    "numerics": "algebra in numpy: scales, ranges, rounding",
    "artifact": "signature, manifest, golden inputs, payload",
    "feeds": "one reader of inputs",
    "backends": "what a backend is, the registry, the adapters",
    "devices": "targets, profiles, what this machine is",
    "runtime": "load, sessions, deadlines, benchmark, memory",
    "devices.remote": "measuring on a device over ssh",
    "fleet.errors": "errors of the fleet",
    "fleet.device": "the agent: download, verify, try, switch, undo",
    "model": "reading, checking, identifying a graph",
    "backends.onnxruntime_.execution": "halves of the adapters that compile and explain",
    "graph": "compiling, running to look inside, weights, shapes",
    "calibration": "observers, and one pass over the feeds",
    "transforms": "the contract, and the float rewrites",
    "measure": "compare, inspect, layer times, speed-up",
    "quantization.placement": "where quantizers go, by the runtime's dialect",
    "quantization.qdq": "writing Q/DQ",
    "quantization.methods": "the transforms of quantization",
    "quantization.search": "QuantizeInt8 and how it decides",
    "pruning.structure": "which channels go together",
    "pruning.reconstruction": "refitting by least squares",
    "pruning.budget": "sharing a budget out over the layers",
    "pruning": "the transforms of pruning",
    "estimate": "latency and memory before a run; choosing devices",
    "recipe": "what a target asks for",
    "api": "optimize, compile, load, infer",
    "tuning": "from a budget to a model that keeps it",
    "fleet.operator": "releases, rollouts, gates, server",
    "testing": "conformance suites; the demonstration",
    "cli": "the command edgeinfer",
}
ROW, WIDTH, NAMES = 30, 900, 430  # pixels; the purpose begins at NAMES
LONGEST = 54  # characters that fit before it; more names take a second line
BELOW, ABOVE = ("#e3f2fd", "#1565c0"), ("#fff3e0", "#e65100")  # the colours of the device line's sides


def order() -> tuple[list[tuple[str, ...]], int]:
    """Return the layers of the test, the lowest first, and the number of the first beyond the device line."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = node.value
    layers = list(ast.literal_eval(found["ORDER"]))
    return layers, layers.index(ast.literal_eval(found["DEVICE_LINE"].args[0]))


def draw() -> str:
    """Draw a row for each layer, the lowest at the bottom, with the device line."""
    layers, line = order()
    assert [names[0] for names in layers] == list(PURPOSE), "PURPOSE does not have the layers of the test"
    parts, y = [], 10
    for number in reversed(range(len(layers))):
        names = layers[number]
        shown = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
        lines = textwrap.wrap(shown, LONGEST)
        parts += _row(y, lines, PURPOSE[names[0]], *(BELOW if number < line else ABOVE))
        y += ROW + 16 * (len(lines) - 1)
        if number == line:
            parts += _device_line(y)
            y += 34
    parts.append(_text(20, y + 16, "A layer imports from those below it, never from above."))
    return "\n".join([*_frame(y + 30), *parts, "</svg>", ""])


def _frame(height: int) -> list[str]:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui,sans-serif" font-size="13">',
        "<title>The layers of edgeinfer: imports point down only</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]


def _row(y: int, lines: list[str], purpose: str, fill: str, edge: str) -> list[str]:
    size = f'width="{WIDTH - 20}" height="{ROW - 4 + 16 * (len(lines) - 1)}" rx="4"'
    style = 'font-family="ui-monospace,monospace" font-size="12"'
    return [
        f'<rect x="10" y="{y}" {size} fill="{fill}" stroke="{edge}"/>',
        *(_text(20, y + 17 + 16 * number, names, style) for number, names in enumerate(lines)),
        _text(NAMES, y + 17, purpose),
    ]


def _device_line(y: int) -> list[str]:
    ends = f'x1="10" y1="{y + 20}" x2="{WIDTH - 10}" y2="{y + 20}"'
    words = "the device line: nothing below imports onnx, onnx_ir, onnxscript, sympy or rich"
    return [
        f'<line {ends} stroke="#b71c1c" stroke-width="2" stroke-dasharray="8 5"/>',
        _text(20, y + 13, words, 'fill="#b71c1c"'),
    ]


def _text(x: int, y: int, words: str, style: str = 'fill="#333333"') -> str:
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


if __name__ == "__main__":
    (ROOT / "docs" / "layers.svg").write_text(draw(), encoding="utf-8")
