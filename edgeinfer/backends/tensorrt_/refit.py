"""Refitting: putting weights into an engine that is loaded, from the ONNX model that it was built of.

An engine built with `strip_plan` holds no weights; its artifact keeps the ONNX model beside it. One built
with `refit` takes the weights of another ONNX file of the same graph. TensorRT's own parser reads the file,
as it did for the build, so that what it folded then (BatchNorm, constants) is folded again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgeinfer.artifact.payload import Payload
from edgeinfer.atomic import scratch_folder
from edgeinfer.backends.onnx_payload import OnnxSource, onnx_source
from edgeinfer.backends.onnx_wire import MalformedModelError, look_through
from edgeinfer.backends.tensorrt_.flavours import Flavour
from edgeinfer.backends.tensorrt_.log import LogCapture, logger_of
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.errors import ArtifactError, ArtifactMismatchError, ExternalDataError, OptionsError

__all__ = ["WEIGHTS", "check_refit", "refit"]

WEIGHTS = "model.onnx"


def check_refit(record: BuildRecord, payload: Payload, options: TensorRTOptions, flavour: Flavour) -> None:
    """Refuse what could not be refitted, before the engine is read.

    Raises:
        OptionsError: `refit_from` does not fit the engine, or names no file.
        ArtifactError: The engine was stripped, and the artifact has no weights.
        ArtifactMismatchError: The engine was stripped, and this TensorRT has no parser to refit it.
    """
    given = options.refit_from
    if given is not None and not record.refittable:
        raise OptionsError(
            "The weights of this engine cannot be replaced.",
            where="option refit_from",
            expected="an engine that was built with refit=True",
            found="one built with strip_plan, which takes its own weights" if record.stripped else "neither",
            hint="Compile the model with options={'refit': True}.",
        )
    if given is not None and not Path(given).is_file():
        raise OptionsError(
            "There is no such file.", where="option refit_from", found=given, hint="Give its path."
        )
    if record.stripped and given is None and WEIGHTS not in payload.files:
        raise ArtifactError(
            "The engine was stripped of its weights, and the artifact does not hold them.",
            where=WEIGHTS,
            hint="Give the ONNX model: load(..., options={'refit_from': 'model.onnx'})."
            if record.refittable
            else "Compile the model again.",
        )
    if (record.stripped or given is not None) and not flavour.has("onnx_refit"):
        raise ArtifactMismatchError(
            f"{flavour} cannot refit weights from an ONNX model.",
            expected="tensorrt 10 or newer, or tensorrt-rtx",
            found=str(flavour),
            hint="Install it here, or compile without strip_plan.",
        )


def refit(
    trt: Any, engine: Any, record: BuildRecord, payload: Payload, options: TensorRTOptions
) -> str | None:
    """Put the weights of `refit_from`, or those that the artifact kept, into an engine, where it needs them.

    Returns:
        What to say in the execution report, or None where nothing was refitted.

    Raises:
        ArtifactError: The weights do not fit the engine.
        ExternalDataError: The ONNX file names data outside of its folder, or is none.
    """
    if options.refit_from is not None:
        source: bytes | str = os.path.realpath(options.refit_from)
        beside = None
    elif record.stripped:
        source = _openable(onnx_source(_weights_of(payload)))
        beside = set(payload.files)
    else:
        return None
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    _check_external(content, source, beside)
    with LogCapture(trt) as log:
        refitter = trt.Refitter(engine, logger_of(trt))
        parser = trt.OnnxParserRefitter(refitter, logger_of(trt))
        parsed = (
            parser.refit_from_bytes(content) if isinstance(source, bytes) else parser.refit_from_file(source)
        )
        done = parsed and refitter.refit_cuda_engine()
    if not done:
        said = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        missing = [] if parsed else list(refitter.get_missing_weights())
        raise ArtifactError(
            "The weights do not fit the engine.",
            where=options.refit_from or WEIGHTS,
            expected="an ONNX model of the graph that the engine was built of",
            found="; ".join([*said, *log.errors]) or f"no weights {', '.join(missing[:5])}",
            hint="Compile that model instead.",
        )
    return f"the weights were refitted from {options.refit_from or WEIGHTS}"


def _openable(source: OnnxSource) -> bytes | str:
    """Return the model itself, or the path of a file with its data beside it."""
    if not source.data:
        return source.model
    folder = scratch_folder()
    (folder / WEIGHTS).write_bytes(source.model)
    for name, view in source.data.items():
        (folder / name).write_bytes(view)
    return str(folder / WEIGHTS)


def _weights_of(payload: Payload) -> Payload:
    """Return the ONNX model in an artifact's payload, with its external data if it has any."""
    names = [name for name in payload.files if name.startswith(WEIGHTS)]
    return Payload(entry=WEIGHTS, files={name: payload.files[name] for name in names})


def _check_external(content: bytes, source: bytes | str, beside: set[str] | None) -> None:
    """Let the vendor's parser read no file but those beside the model: it follows any path in a model."""
    folder = None if isinstance(source, bytes) else Path(source).parent
    try:
        tensors, _ = look_through(content)
    except MalformedModelError as error:
        raise ExternalDataError(
            "The file with the weights is not an ONNX model.",
            where=WEIGHTS if isinstance(source, bytes) else source,
            found=str(error),
            hint="Give the model that was compiled.",
        ) from error
    for location in dict.fromkeys(tensor.location for tensor in tensors):
        plain = location and location == os.path.basename(location) and location not in (".", "..")  # noqa: PTH119
        known = plain and folder is not None and (beside is None or location in beside)
        if not known or (folder is not None and (folder / location).is_symlink()):
            raise ExternalDataError(
                "The ONNX model keeps weights in a file that is not beside it.",
                where=WEIGHTS if isinstance(source, bytes) else source,
                found=location,
                hint="Save the model with its data in one folder.",
            )
