"""The public face of all transforms. Those of `quantization` and `pruning` are imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeinfer.lazy import attribute_of

if TYPE_CHECKING:
    from edgeinfer.pruning.prune_channels import PruneChannels
    from edgeinfer.pruning.prune_heads import PruneHeads
    from edgeinfer.pruning.prune_nm import PruneNM
    from edgeinfer.pruning.prune_weights import PruneWeights
    from edgeinfer.quantization.methods.correct_bias import CorrectBias
    from edgeinfer.quantization.methods.equalize_activations import EqualizeActivations
    from edgeinfer.quantization.methods.equalize_weights import EqualizeWeights
    from edgeinfer.quantization.methods.quantize_dynamic import QuantizeDynamic
    from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
    from edgeinfer.quantization.methods.quantize_weights import QuantizeWeights
    from edgeinfer.quantization.methods.retarget_qdq import RetargetQDQ
    from edgeinfer.quantization.methods.round_weights import RoundWeights
    from edgeinfer.quantization.methods.smooth_quant import SmoothQuant
    from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
    from edgeinfer.transforms.contract import (
        Applied,
        GraphTransform,
        ReportBuilder,
        Skipped,
        Transform,
        TransformReport,
        TransformResult,
    )
    from edgeinfer.transforms.convert_opset import ConvertOpset
    from edgeinfer.transforms.fix_shapes import FixShapes
    from edgeinfer.transforms.fuse_batchnorm import FuseBatchNorm
    from edgeinfer.transforms.pipeline import Pipeline, as_transform
    from edgeinfer.transforms.simplify import Simplify
    from edgeinfer.transforms.to_float16 import ToFloat16

_HOME = {
    **dict.fromkeys(
        (
            "Applied",
            "GraphTransform",
            "ReportBuilder",
            "Skipped",
            "Transform",
            "TransformReport",
            "TransformResult",
        ),
        "edgeinfer.transforms.contract",
    ),
    "ConvertOpset": "edgeinfer.transforms.convert_opset",
    "CorrectBias": "edgeinfer.quantization.methods.correct_bias",
    "EqualizeActivations": "edgeinfer.quantization.methods.equalize_activations",
    "EqualizeWeights": "edgeinfer.quantization.methods.equalize_weights",
    "FixShapes": "edgeinfer.transforms.fix_shapes",
    "FuseBatchNorm": "edgeinfer.transforms.fuse_batchnorm",
    "Pipeline": "edgeinfer.transforms.pipeline",
    "PruneChannels": "edgeinfer.pruning.prune_channels",
    "PruneHeads": "edgeinfer.pruning.prune_heads",
    "PruneNM": "edgeinfer.pruning.prune_nm",
    "PruneWeights": "edgeinfer.pruning.prune_weights",
    "QuantizeDynamic": "edgeinfer.quantization.methods.quantize_dynamic",
    "QuantizeInt8": "edgeinfer.quantization.search.quantize_int8",
    "QuantizeStatic": "edgeinfer.quantization.methods.quantize_static",
    "QuantizeWeights": "edgeinfer.quantization.methods.quantize_weights",
    "RetargetQDQ": "edgeinfer.quantization.methods.retarget_qdq",
    "RoundWeights": "edgeinfer.quantization.methods.round_weights",
    "Simplify": "edgeinfer.transforms.simplify",
    "SmoothQuant": "edgeinfer.quantization.methods.smooth_quant",
    "ToFloat16": "edgeinfer.transforms.to_float16",
    "as_transform": "edgeinfer.transforms.pipeline",
}

__all__ = [
    "Applied",
    "ConvertOpset",
    "CorrectBias",
    "EqualizeActivations",
    "EqualizeWeights",
    "FixShapes",
    "FuseBatchNorm",
    "GraphTransform",
    "Pipeline",
    "PruneChannels",
    "PruneHeads",
    "PruneNM",
    "PruneWeights",
    "QuantizeDynamic",
    "QuantizeInt8",
    "QuantizeStatic",
    "QuantizeWeights",
    "ReportBuilder",
    "RetargetQDQ",
    "RoundWeights",
    "Simplify",
    "Skipped",
    "SmoothQuant",
    "ToFloat16",
    "Transform",
    "TransformReport",
    "TransformResult",
    "as_transform",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return attribute_of(_HOME[name], name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
