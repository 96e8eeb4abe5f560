"""`edgeinfer doctor`: what this machine has, what is missing, and what to install."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
from typing import Any

from edgeinfer import __version__
from edgeinfer.cli.console import Commands, add_json, print_json, print_table

__all__ = ["add_commands"]

_PACKAGES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "mlcommons-loadgen",
)
# Builds of ONNX Runtime are distributions of their own, and all of them fill the folder `onnxruntime`.
_BUILDS = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")
}


def add_commands(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("doctor", help="say what this machine can run, and what is missing")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print what was found."""
    found = examine()
    if arguments.json:
        print_json(found)
        return
    from edgeinfer.devices import local
    from edgeinfer.display import Table

    packages = Table(title=f"edgeinfer {__version__}", columns=("", ""), rows=found["packages"].items())
    here = local()
    advice = Table(
        title="For a steadier latency",
        columns=("topic", "found", "what to do"),
        rows=[(item.topic, item.found, item.todo) for item in here.advice()],
    )
    backends = Table(
        title="Backends",
        columns=("name", "state", "version", "from", "what to do"),
        rows=[
            (
                name,
                "available" if backend["available"] else "not available",
                backend["version"],
                backend["from"],
                _advice(backend),
            )
            for name, backend in found["backends"].items()
        ],
    )
    devices = Table(
        title="Devices",
        columns=("target", "description", "precisions"),
        rows=[
            (f"{name}:{device['name']}", device["description"], ", ".join(device["precisions"]))
            for name, backend in found["backends"].items()
            for device in backend["devices"]
        ],
    )
    print_table(packages, backends, devices, here.table(), *([advice] if advice.rows else []))


def examine() -> dict[str, Any]:
    """Return what is installed and what works, as JSON-compatible values."""
    from edgeinfer.backends.registry import backends, install_command
    from edgeinfer.devices import local, profiles
    from edgeinfer.runtime.machine import describe_machine

    found = {}
    for name, entry in backends().items():
        state = entry.capabilities()
        found[name] = {
            "available": state.available,
            "version": state.version,
            "reason": state.reason,
            "install": "" if state.available else install_command(name),
            "from": ", ".join(entry.distributions),
            "devices": [
                {
                    "name": device.name,
                    "description": device.description,
                    "precisions": sorted(device.precisions),
                }
                for device in state.devices
            ],
        }
    return {
        "edgeinfer": __version__,
        "machine": describe_machine(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "backends": found,
        "profiles": sorted(profiles()),
        "catalog_problems": list(profiles().problems),
        "local": local().to_dict(),
    }


def _advice(backend: dict[str, Any]) -> str:
    if backend["available"]:
        return ""
    reason = str(backend["reason"]).splitlines()[0]
    return reason if backend["version"] or backend["install"] in reason else f"{reason}\n{backend['install']}"


def _version(name: str) -> str:
    """Say which version is installed; of ONNX Runtime also which build, and whether there are several."""
    found = {}
    for package in (name, *_BUILDS.get(name, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if not found:
        return "not installed"
    told = ", ".join(
        version if package == name else f"{package} {version}" for package, version in found.items()
    )
    if len(found) > 1:
        told += "; they are one folder: uninstall all, then install the one that you want"
    return told
