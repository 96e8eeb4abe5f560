"""The four verbs: `optimize`, `compile`, `load`, `infer`. They validate and delegate."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.manifest import Manifest
from edgeinfer.backends.base import (
    Capabilities,
    CompileOptions,
    DeviceInfo,
    LoadOptions,
    options_from,
)
from edgeinfer.backends.registry import get_backend, require_available
from edgeinfer.devices.profile import Target
from edgeinfer.devices.select import default_backend
from edgeinfer.errors import (
    ArtifactFormatError,
    ArtifactMismatchError,
    CompileError,
    EdgeInferError,
    InputError,
    SessionError,
    TargetError,
    UnsupportedModelError,
)
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.recipe import hand_down, recipe
from edgeinfer.runtime.affinity import Pins
from edgeinfer.runtime.session import Session, SessionOptions
from edgeinfer.transforms.contract import Pipeline, Transform

__all__ = ["compile", "infer", "load", "optimize"]


def optimize(
    model: ModelSource,
    transforms: Iterable[Transform | ir.passes.PassBase] | Transform | None = None,
    *,
    target: Target | str | None = None,
    calibration: Any = None,
) -> Model:
    """Apply transforms to a model, or the recipe of a target.

    Args:
        model: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model. It is not changed.
        transforms: What to apply, in order. None: the recipe of the target, which is to simplify, to fuse,
            and then the best precision that the target executes and that can be reached (int8 with
            calibration, fp16 on GPU and NPU, else float32).
        target: A Target, a device profile (`"jetson-orin-nano"`) or a backend (`"openvino:NPU"`). It is
            handed down to transforms that take one, and remembered in the model.
        calibration: A re-iterable of feeds (mappings from input name to array with the batch axis), or one of
            the sources of `edgeinfer.quantization`. Handed down to transforms that take one.

    Returns:
        A new Model; `model.history` says what was done, `model.report` says it at length.

    Raises:
        ModelError: The model cannot be read.
        TargetError: There is no such target.
        TransformError: A transform cannot be applied.
    """
    loaded = Model.load(model)
    parsed = Target.parse(target) if target is not None else None
    if transforms is None:
        steps: tuple[Any, ...] = recipe(parsed, calibration)
    elif isinstance(transforms, Iterable):
        steps = tuple(transforms)
    else:
        steps = (transforms,)
    pipeline = Pipeline(tuple(hand_down(step, parsed, calibration) for step in steps))
    result, report = pipeline.apply(loaded)
    if parsed is not None:
        result = result.with_metadata(edgeinfer_target=str(parsed))
    return attrs.evolve(result, report=report)


def compile(  # noqa: A001 (the verb of the design)
    model: ModelSource,
    backend: str | None = None,
    *,
    device: str | None = None,
    options: object = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Artifact:
    """Compile a model for a backend.

    Args:
        model: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model.
        backend: The backend's name, with or without a device (`"openvino:GPU"`). None: that of the model's
            target, else the best that is available on this machine.
        device: The device name within the backend. None: that of the model's target, else its default.
        options: The backend's frozen options value, or a mapping of the same names.
        cache_dir: A folder for the runtime's caches.

    Returns:
        The Artifact, in memory; `save` writes it.

    Raises:
        ModelError: The model cannot be read, or takes or gives something else than tensors.
        BackendError: The backend is unknown or not available, or the device or an option is.
        CompileError: The runtime refused the model.
    """
    loaded = Model.load(model)
    target = _choose(loaded, backend, device)
    chosen = get_backend(target.backend)
    _require_tensors(loaded)
    cache = Path(cache_dir) if cache_dir is not None else None
    request = CompileOptions(device=target.device, options=options, cache_dir=cache)
    with _wrapping(CompileError, f"{chosen.name} could not compile the model"):
        try:
            payload = chosen.compile(loaded, request)
        except ImportError:
            require_available(chosen)  # says what is missing, and what to install
            raise
    version = chosen.capabilities().version
    return Artifact.of_payload(payload, model=loaded, backend=chosen.name, backend_version=version)


def load(
    artifact: Artifact | str | os.PathLike[str], *, device: str | None = None, options: object = None
) -> Session:
    """Load an artifact.

    Args:
        artifact: An Artifact, or the directory that `Artifact.save` wrote; its files are verified first.
        device: Another device of the same backend than it was compiled for (portable artifacts only).
        options: Options for this session: those of the backend, and those of `SessionOptions`
            (`pin_cores`, `latencies`), in one mapping; or the backend's frozen value.

    Raises:
        ArtifactError: It is damaged, or was built for another runtime or other hardware.
        BackendError: Its backend is not available here, or the device is not.
    """
    if isinstance(artifact, (str, os.PathLike)):
        opened = Artifact.open(artifact)
    elif isinstance(artifact, Artifact):
        opened = artifact
    else:
        raise ArtifactFormatError(
            "That is not an artifact.",
            expected="an Artifact, or the directory that Artifact.save wrote",
            found=type(artifact).__name__,
            hint="Compile a model first: ei.load(ei.compile(model)).",
        )
    manifest = opened.manifest
    backend = get_backend(manifest.backend)
    capabilities = require_available(backend)
    wanted = _wanted_device(manifest, device)
    _preflight(manifest, capabilities, wanted)
    own, session_options = _split_options(options)
    pins = Pins(session_options.pin_cores) if session_options.pin_cores else None
    pinned = pins.while_loading() if pins is not None else contextlib.nullcontext()
    with pinned, _wrapping(SessionError, f"{backend.name} could not load the artifact"):
        asked = LoadOptions(device=wanted, options=own, signature=manifest.signature)
        runner = backend.load(opened.payload, asked)
    return Session(runner, manifest, device=wanted, options=session_options, pins=pins)


def infer(session: Session, inputs: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
    """Run a session once; the same as `session.infer(inputs)`.

    Raises:
        SessionError: See `Session.infer`.
    """
    if not isinstance(session, Session):
        raise InputError(
            "That is not a session.",
            expected="a Session",
            found=type(session).__name__,
            hint="Load the artifact first: session = ei.load(artifact).",
        )
    return session.infer(inputs)


def _choose(model: Model, backend: str | None, device: str | None) -> Target:
    if backend is not None:
        try:
            target = Target.parse(backend)
        except TargetError:
            if isinstance(backend, str):
                get_backend(backend.partition(":")[0])  # an unknown name is an UnknownBackendError
            raise
    elif model.target is not None:
        target = Target.parse(model.target)
    else:
        target = Target(backend=default_backend())
    return attrs.evolve(target, device=device) if device is not None else target


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


def _wanted_device(manifest: Manifest, device: str | None) -> str:
    wanted = manifest.device if device is None else device
    if manifest.kind == "device-bound" and wanted != manifest.device:
        raise ArtifactMismatchError(
            "A device-bound artifact runs only on the device that it was compiled for.",
            expected=manifest.device,
            found=wanted,
            hint=f"Compile the model again with device={wanted!r}.",
        )
    return wanted


def _preflight(manifest: Manifest, capabilities: Capabilities, device: str) -> None:
    """Refuse an artifact whose requirements are not met here, before its runtime sees a byte of it."""
    info = capabilities.device(device) or DeviceInfo(name=device)
    facts = {**capabilities.facts, **info.facts}
    mismatches = [
        (fact, accepted, facts.get(fact, "unknown"))
        for fact, accepted in manifest.requires.items()
        if not any(fnmatch.fnmatchcase(facts.get(fact, "unknown"), pattern) for pattern in accepted)
    ]
    if mismatches:
        raise ArtifactMismatchError(
            f"The artifact was built for another {mismatches[0][0].replace('_', ' ')}.",
            where=f"backend {manifest.backend!r}, device {device or 'default'}",
            expected="; ".join(f"{fact} {' or '.join(accepted)}" for fact, accepted, _ in mismatches),
            found="; ".join(f"{fact} {found}" for fact, _, found in mismatches),
            hint="Compile the model on this machine, or install the runtime that it was built with.",
            facts={"mismatches": mismatches},
        )


def _split_options(options: object) -> tuple[object, SessionOptions]:
    if not isinstance(options, Mapping):
        return options, SessionOptions()
    names = {field.name for field in attrs.fields(SessionOptions)}
    own = {name: value for name, value in options.items() if name not in names}
    return own, options_from(
        SessionOptions, {n: v for n, v in options.items() if n in names}, backend="session"
    )


@contextlib.contextmanager
def _wrapping(cls: type[EdgeInferError], what: str) -> Iterator[None]:
    try:
        yield
    except (EdgeInferError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise cls(f"{what}: {type(error).__name__}: {str(error).strip()}") from error
