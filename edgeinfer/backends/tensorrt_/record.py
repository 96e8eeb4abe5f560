"""`BuildRecord`: what the runner must know about an engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import final

import attrs

from edgeinfer.backends.tensorrt_.options import Triple

__all__ = ["BuildRecord"]


@final
@attrs.frozen(kw_only=True)
class BuildRecord:
    """What the runner must know about an engine, kept beside it as `build.json`.

    Attributes:
        flavour: The flavour's name.
        version: Its version.
        built_on: The GPU that it was built on, or `no GPU`.
        inputs: Names and dtypes of the model's inputs, in the signature's order.
        outputs: The same of its outputs.
        profiles: The shapes that it was built for.
        precisions: The precision that the graph asks for, by ONNX node.
        notes: What must be said in the execution report.
        host_code: The engine carries host code.
        dla_core: The DLA core that it is for, or None.
    """

    flavour: str
    version: str
    built_on: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    profiles: tuple[Mapping[str, Triple], ...] = ()
    precisions: Mapping[str, str] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()
    host_code: bool = False
    dla_core: int | None = None

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(attrs.asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, text: bytes) -> BuildRecord:
        """Read what `encode` wrote."""
        fields = json.loads(text)
        for name in ("inputs", "outputs"):
            fields[name] = tuple((tensor, dtype) for tensor, dtype in fields[name])
        return cls(**(fields | {name: tuple(fields[name]) for name in ("profiles", "notes")}))
