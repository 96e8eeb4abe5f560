"""ONNX Runtime's model package: a folder of variants from which it chooses by execution provider.

The format is that of `onnxruntime.ModelPackage`, schema 1.0, as ONNX Runtime 1.32 reads and writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import final

import attrs

from edgeinfer.artifact.manifest import Manifest

__all__ = ["BACKEND", "PackageVariant", "package_manifest"]

BACKEND = "onnxruntime"


@final
@attrs.frozen(kw_only=True)
class PackageVariant:
    """A variant of a package.

    Attributes:
        folder: Its folder within the package.
        manifest: The artifact that is in it.
    """

    folder: str
    manifest: Manifest


def package_manifest(name: str, version: str, variants: Mapping[str, PackageVariant]) -> bytes:
    """Return the `manifest.json` of a package with one component."""
    found = {
        variant: {
            "variant_directory": package.folder,
            "ep": f"{package.manifest.device or 'CPU'}ExecutionProvider",
            "executor_info": {"ort": {"model_file": package.manifest.entry, **_session(package.manifest)}},
        }
        for variant, package in variants.items()
    }
    manifest = {
        "schema_version": "1.0",
        "layout": "portable",
        "package_name": name,
        "package_version": version,
        "components": {name: {"variants": found}},
    }
    return json.dumps(manifest, indent=1).encode() + b"\n"


def _session(manifest: Manifest) -> dict[str, object]:
    config = manifest.options.get("session_config")
    entries = {str(k): str(v) for k, v in config.items()} if isinstance(config, Mapping) else {}
    if manifest.options.get("int8_activations"):
        entries["session.qdqisint8allowed"] = "1"
    return {"session_options": entries} if entries else {}
