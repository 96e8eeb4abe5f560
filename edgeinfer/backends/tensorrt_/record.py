"""What is kept beside an engine as `build.json`: all that running it needs to know about its build."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, final

import attrs

from edgeinfer.errors import ArtifactFormatError
from edgeinfer.plain_json import parse_json

__all__ = ["BuildRecord"]

NAME = "build.json"


@final
@attrs.frozen(kw_only=True)
class BuildRecord:
    """What the runner must know about an engine.

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
        lean_runtime_excluded: The engine runs on later versions, and does not carry the runtime for that.
        refittable: Its weights can be replaced by others.
        stripped: Its weights are left out.
        dla_core: The DLA core that it is for, or None.
    """

    flavour: str
    version: str
    built_on: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    profiles: tuple[Mapping[str, Any], ...] = ()
    precisions: Mapping[str, str] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()
    host_code: bool = False
    lean_runtime_excluded: bool = False
    refittable: bool = False
    stripped: bool = False
    dla_core: int | None = None

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(attrs.asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, text: bytes) -> BuildRecord:
        """Read what `encode` wrote, here or in a later version, which may have written more.

        Raises:
            ArtifactFormatError: It is something else.
        """
        try:
            fields = {name: value for name, value in parse_json(text).items() if name in _FIELDS}
            for name in ("inputs", "outputs"):
                fields[name] = tuple((str(tensor), str(dtype)) for tensor, dtype in fields[name])
            for name in ("profiles", "notes"):
                fields[name] = tuple(fields.get(name, ()))
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactFormatError(
                f"The record of the engine's build cannot be read: {type(error).__name__}: {error}.",
                where=NAME,
                hint="The artifact is not one that edgeinfer wrote; compile the model again.",
            ) from error


_FIELDS = {field.name for field in attrs.fields(BuildRecord)}
