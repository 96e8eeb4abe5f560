"""Which options of ONNX Runtime an artifact may set: those that reach no file, no library and no code.

Left out on purpose: everything with a path, a prefix or a folder in it; what turns on profiles, dumps and
caches, which are written to the current folder (`session.collect_node_memory_stats_to_file`,
`trt_engine_cache_enable`); the libraries of providers (`backend_path`); numbers of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgeinfer.backends.option_checks import untrusted

__all__ = ["PROVIDER_OPTIONS", "SESSION_CONFIG", "find_untrusted"]

# fmt: off
SESSION_CONFIG = frozenset({
    "mlas.disable_kleidiai", "mlas.enable_gemm_fastmath_arm64_bfloat16", "mlas.qnbit.force_fp32",
    "mlas.use_lut_gemm", "optimization.disable_specified_optimizers",
    "optimization.enable_cast_chain_elimination", "optimization.enable_gelu_approximation",
    "session.allow_released_opsets_only", "session.disable_aot_function_inlining",
    "session.disable_cpu_ep_fallback", "session.disable_double_qdq_remover", "session.disable_prepacking",
    "session.disable_qdq_constant_folding", "session.disable_quant_qdq", "session.dynamic_block_base",
    "session.enable_dq_matmulnbits_fusion", "session.enable_quant_qdq_cleanup", "session.force_spinning_stop",
    "session.graph_optimizations_loop_level", "session.inter_op.allow_spinning",
    "session.intra_op.allow_spinning", "session.prepack.enable_parallel",
    "session.qdq_matmulnbits_accuracy_level", "session.qdq_matmulnbits_block_size",
    "session.qdqisint8allowed", "session.set_denormal_as_zero", "session.strict_shape_type_inference",
    "session.use_device_allocator_for_initializers", "session.use_env_allocators",
    "session.x64quantprecision",
})
PROVIDER_OPTIONS = frozenset({
    "arena_extend_strategy", "device_id", "gpu_mem_limit", "cudnn_conv1d_pad_to_nc1d",
    "cudnn_conv_algo_search", "cudnn_conv_use_max_workspace", "do_copy_in_default_stream",
    "enable_cuda_graph", "enable_skip_layer_norm_strict_mode", "fuse_conv_bias", "prefer_nhwc", "sdpa_kernel",
    "use_tf32", "trt_auxiliary_streams", "trt_bf16_enable", "trt_builder_optimization_level",
    "trt_context_memory_sharing_enable", "trt_cuda_graph_enable", "trt_dla_core", "trt_dla_enable",
    "trt_fp16_enable", "trt_int8_enable", "trt_layer_norm_fp32_fallback", "trt_max_partition_iterations",
    "trt_max_workspace_size", "trt_min_subgraph_size", "trt_profile_max_shapes", "trt_profile_min_shapes",
    "trt_profile_opt_shapes", "trt_sparsity_enable", "device_type", "disable_dynamic_shapes",
    "enable_opencl_throttling", "enable_qdq_optimizer", "model_priority", "num_streams", "precision",
    "backend_type", "enable_htp_fp16_precision", "htp_arch", "htp_graph_finalization_optimization_mode",
    "htp_performance_mode", "offload_graph_io_quantization", "qnn_context_priority", "rpc_control_latency",
    "soc_model", "vtcm_mb", "AllowLowPrecisionAccumulationOnGPU", "EnableOnSubgraphs", "MLComputeUnits",
    "ModelFormat", "RequireStaticInputShapes", "SpecializationStrategy", "disable_metacommands",
    "performance_preference", "migraphx_fp16_enable", "migraphx_int8_enable",
})
# fmt: on


def find_untrusted(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the options of an artifact that it may not set."""
    found = ["plugin_libraries"] if options.get("plugin_libraries") else []
    found += untrusted(options.get("session_config", {}), SESSION_CONFIG, "session_config")
    found += untrusted(options.get("provider_options", {}), PROVIDER_OPTIONS, "provider_options")
    for name, given in _pairs(options.get("providers", ())):
        found += untrusted(given, PROVIDER_OPTIONS, str(name))
    return found


def _pairs(providers: Any) -> Iterable[tuple[object, Mapping[str, object]]]:
    return [(item, {}) if isinstance(item, str) else (item[0], item[1]) for item in providers]
