"""`compile_model`: from a Model to an Artifact, by the backend of its target."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs
import onnx_ir as ir

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.backends.protocol import CompileOptions
from edgeinfer.backends.registry import get_backend, require_available
from edgeinfer.devices.default import default_backend
from edgeinfer.devices.profile import Target
from edgeinfer.errors import CompileError, DeviceError, TargetError, UnsupportedModelError
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.runtime.wrapping import wrapping

__all__ = ["compile_model"]


def compile_model(
    model: ModelSource,
    target: Target | str | None = None,
    *,
    device: str | None = None,
    options: object = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trial: bool = True,
) -> Artifact:
    """Compile a model; see `edgeinfer.compile`. What it was tuned for is used unless something else is given.

    With `trial=False` a backend whose payload is the graph itself leaves the first compilation to `load`.

    Raises:
        ModelError: The model cannot be read, or takes or gives something else than tensors.
        BackendError: The backend is unknown or not available, or the device or an option is.
        CompileError: The runtime refused the model.
    """
    loaded = Model.load(model)
    wanted = _choose(loaded, target, device)
    chosen = get_backend(wanted.backend)
    _require_tensors(loaded)
    cache = Path(cache_dir) if cache_dir is not None else None
    request = CompileOptions(
        device=wanted.device,
        options=_with_tuned(loaded, wanted, options),
        cache_dir=cache,
        trial=trial,
    )
    with wrapping(CompileError, f"{chosen.name} could not compile the model"):
        try:
            payload = chosen.compile(loaded, request)
        except ImportError:
            require_available(chosen)  # says what is missing, and what to install
            raise
        except DeviceError as error:
            _name_successor(error, wanted)
            raise
    version = chosen.capabilities().version
    return Artifact.of_payload(payload, model=loaded, backend=chosen.name, backend_version=version)


def _choose(model: Model, wanted: Target | str | None, device: str | None) -> Target:
    if wanted is not None:
        try:
            target = Target.parse(wanted)
        except TargetError:
            if isinstance(wanted, str):
                get_backend(wanted.partition(":")[0])  # an unknown name is an UnknownBackendError
            raise
    elif model.target is not None:
        target = Target.parse(model.target)
    else:
        target = Target(backend=default_backend())
    return attrs.evolve(target, device=device) if device is not None else target


def _with_tuned(model: Model, target: Target, options: object) -> object:
    """Add the options that the model was tuned with on this backend; what the caller gives wins.

    A backend's own options value is complete, so nothing is added to it.
    """
    if model.target is None or not (options is None or isinstance(options, Mapping)):
        return options
    tuned = model.target_options
    if not tuned or Target.parse(model.target).backend != target.backend:
        return options
    return {**tuned, **(options or {})}


def _name_successor(error: DeviceError, target: Target) -> None:
    profile = target.profile
    if profile is not None and profile.legacy:
        more = f"{profile.description}: {profile.legacy}. Its successor is {profile.successor!r}."
        error.hint = f"{error.hint} {more}" if error.hint else more


def _require_tensors(model: Model) -> None:
    """Refuse sequences and optional values: a signature has no words for them."""
    graph = model.ir.graph
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                raise UnsupportedModelError(
                    f"The model has an {kind} that is not a tensor.",
                    where=f"{kind} {value.name!r}",
                    expected="a tensor",
                    found=str(value.type),
                    hint="Export the model with plain tensors there.",
                )
