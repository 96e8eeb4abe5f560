"""The ONNX Runtime backend: runs everywhere, on whichever execution providers the installed build has.

The payload is the ONNX graph, so artifacts are portable. A device is an execution provider: `CPU`, `CUDA`,
`TENSORRT`, `DML`, `COREML`, `OPENVINO`, `QNN`, … by the provider's name without its ending.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.artifact.payload import Payload
from edgeinfer.backends.dialect import MOVING_OPS, KernelCosts, QDQDialect
from edgeinfer.backends.facts import machine_facts
from edgeinfer.backends.onnx_payload import OnnxSource, onnx_source, payload_of_onnx
from edgeinfer.backends.onnxruntime_.options import OnnxRuntimeOptions
from edgeinfer.backends.onnxruntime_.port import check_ports
from edgeinfer.backends.onnxruntime_.runner import OnnxRuntimeRunner
from edgeinfer.backends.onnxruntime_.trust import find_untrusted
from edgeinfer.backends.option_checks import notes_on, options_of_artifact
from edgeinfer.backends.options import options_from
from edgeinfer.backends.protocol import (
    API_VERSION,
    Capabilities,
    CompileOptions,
    DeviceInfo,
    LoadOptions,
    ModelToCompile,
)
from edgeinfer.cpu_quota import usable_cpus
from edgeinfer.errors import CompileError, DeviceError

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeOptions"]

NAME = "onnxruntime"

# Fitted to the per-node profiles of MobileNetV2, SqueezeNet, ResNet-20, NanoDet, DS-CNN and MobileNetV1-0.25
# on one thread of an AVX512-VNNI CPU (ONNX Runtime 1.32): within 30 % of most kernels. Integer convolutions
# with few input channels gather bytes one by one, which is why first layers seldom gain.
COSTS = KernelCosts(
    float_macs=50e3,
    float_depthwise_macs=19e3,
    float_call_us=2.0,
    integer_macs=175e3,
    integer_depthwise_macs=20e3,
    integer_ragged_macs=7e3,
    integer_call_us=5.0,
    integer_store_us=0.12e-3,
    gather_us=0.95e-3,
    float_weight_us=0.16e-3,
    integer_weight_us=0.066e-3,
    pool_us=3.2e-3,
    table_us=0.3e-3,
    quantize_us=0.5e-3,
    dequantize_us=0.3e-3,
    reorder_us=0.5e-3,
)

DIALECT = QDQDialect(
    name=NAME,
    activation_dtype="uint8",
    quantize_bias=True,
    gemm_of_matmul=True,
    fold_relu=True,
    needs_output={"Conv"},
    requantizing={"Add", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"},
    moving=MOVING_OPS | {"Concat", "Resize"},  # where its inputs share a scale, a Concat copies
    # WeightBiasQuantization gives such layers one scale for all channels: on MobileNetV2 the outputs were at
    # 23 dB with four layers in float, and are at 29 dB when it is kept off.
    keeps_float_by_axis=True,
    costs=COSTS,
)

_log = logging.getLogger(__name__)
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"

_ENDING = "ExecutionProvider"
# Not a device: it sends the inputs to a remote service.
_REMOTE = frozenset({"AzureExecutionProvider"})
_PRECISIONS = {
    "CPU": ("float32", "int8"),
    "CUDA": ("float32", "float16", "bfloat16"),
    "TENSORRT": ("float32", "float16", "int8"),
    "NVTENSORRTRTX": ("float32", "float16", "int8"),
    "DML": ("float32", "float16"),
    "COREML": ("float32", "float16"),
    "OPENVINO": ("float32", "float16", "int8"),
    "QNN": ("float16", "int8"),
}
# Without VNNI its kernels for uint8 by int8 saturate at 16 bits; those for uint8 by uint8, which are slower,
# do not. The option changes nothing on other CPUs.
_EXACT = {"session_config": {"session.x64quantprecision": "1"}}
# What is known of it without a runtime.
_WITHOUT = Capabilities(
    available=False,
    dialect=DIALECT,
    reference=True,
    reference_options=_EXACT,
    threads_option="threads",
    spin_option="allow_spinning",
    float16_devices=("CUDA", "DML", "NVTENSORRTRTX", "TENSORRT"),
    tuning_options=({"allow_spinning": False},),
)
_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}


@final
class OnnxRuntimeBackend:
    """Adapter to `onnxruntime`."""

    name = NAME
    api_version = API_VERSION

    def capabilities(self) -> Capabilities:
        """Return what the installed `onnxruntime` can do here."""
        try:
            ort = _runtime()
            devices = [_device_info(name) for name in _provider_names(ort)]
        except Exception as error:  # not installed, or its libraries do not fit this machine
            return attrs.evolve(_WITHOUT, reason=f"onnxruntime cannot be imported: {error}")
        return attrs.evolve(
            _WITHOUT,
            available=True,
            version=ort.__version__,
            devices=devices,
            facts={**machine_facts(), "runtime_version": ort.__version__},
        )

    def compile(self, model: ModelToCompile, options: CompileOptions, /) -> Payload:
        """Return the ONNX graph, after ONNX Runtime has accepted it.

        Raises:
            DeviceError: The device's execution provider is not here or does not start.
            OptionsError: An option is unknown or refused.
            CompileError: ONNX Runtime refuses the model.
        """
        chosen = options_from(OnnxRuntimeOptions, options.options, backend=NAME)
        device = options.device.upper() or "CPU"
        payload = payload_of_onnx(model, device=device, options=chosen.portable())
        if options.trial:
            _create(onnx_source(payload), device, chosen)
        return attrs.evolve(payload, notes=notes_on(chosen.not_portable()))

    def load(self, payload: Payload, options: LoadOptions, /) -> OnnxRuntimeRunner:
        """Create an inference session.

        Raises:
            ArtifactError: The artifact names a file, a library or code, or an option that is not known.
            DeviceError: The device's execution provider is not here or does not start.
            OptionsError: An option that was given to `load` is unknown or refused.
            CompileError: ONNX Runtime refuses the model.
        """
        kept = options_of_artifact(
            OnnxRuntimeOptions, payload.options, backend=NAME, find_untrusted=find_untrusted
        )
        chosen = options_from(OnnxRuntimeOptions, kept, options.options, backend=NAME)
        device = (options.device or payload.device).upper() or "CPU"
        source = onnx_source(payload)
        session = _create(source, device, chosen)

        def diagnose(optimized: Path, profile: Path | None = None) -> Any:
            """Create the session again, which writes down what it made of the graph, and its profile."""
            return _create(source, device, chosen, optimized=optimized, profile=profile)

        return OnnxRuntimeRunner(_runtime(), session, diagnose)


@functools.cache
def _runtime() -> Any:
    """Import ONNX Runtime with its telemetry off, for which it reads a variable when it is imported.

    With telemetry it sends events, writes an identifier below HOME, and has a thread that makes forked
    children hang when they end.
    """
    if "onnxruntime" in sys.modules and not os.environ.get(_NO_TELEMETRY):
        _log.warning(
            "onnxruntime was imported before edgeinfer used it, with its telemetry on. It is asked to stop, "
            "but sends what it has collected. Set %s=1, or do not import it before.",
            _NO_TELEMETRY,
        )
    os.environ[_NO_TELEMETRY] = os.environ.get(_NO_TELEMETRY) or "1"
    import onnxruntime as ort

    ort.disable_telemetry_events()
    return ort


def _plugin_devices(ort: Any) -> list[Any]:
    """Return the devices of plugin providers that were registered with ONNX Runtime (1.23 and later)."""
    if not hasattr(ort, "get_ep_devices"):
        return []
    built_in = set(ort.get_available_providers())
    return [device for device in ort.get_ep_devices() if device.ep_name not in built_in]


def _provider_names(ort: Any) -> list[str]:
    """Return the usable providers, the CPU first: it is the default."""
    names = [*ort.get_available_providers(), *(device.ep_name for device in _plugin_devices(ort))]
    names = [name for name in dict.fromkeys(names) if name not in _REMOTE]
    return sorted(names, key=lambda name: name != f"CPU{_ENDING}")


def _device_name(provider: str) -> str:
    return provider.removesuffix(_ENDING).upper()


def _device_info(provider: str) -> DeviceInfo:
    name = _device_name(provider)
    return DeviceInfo(name=name, description=provider, precisions=_PRECISIONS.get(name, ("float32",)))


def _providers(ort: Any, device: str, options: OnnxRuntimeOptions) -> list[tuple[str, dict[str, Any]]]:
    """Return the providers with their options, in order of preference, the CPU last.

    Raises:
        DeviceError: One is not here.
    """
    present = _provider_names(ort)
    by_device = {_device_name(name): name for name in present}
    asked = options.providers or ((by_device.get(device, device), options.provider_options),)
    for name, _ in asked:
        if name not in present:
            raise DeviceError(
                f"The installed onnxruntime {ort.__version__} has no execution provider {name!r}.",
                where=f"device {device!r}",
                expected=f"device {', '.join(by_device)} (provider {', '.join(present)})",
                found=name,
                hint="Install the build of onnxruntime that has it (such as onnxruntime-gpu), or name the "
                "plugin's library in the option plugin_libraries.",
                facts={"present": tuple(present)},
            )
    chosen = [(name, dict(settings)) for name, settings in asked]
    if all(name != f"CPU{_ENDING}" for name, _ in chosen):
        chosen.append((f"CPU{_ENDING}", {}))  # for the nodes that the provider does not take
    return chosen


def _create(
    source: OnnxSource,
    device: str,
    options: OnnxRuntimeOptions,
    *,
    optimized: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """Create an `InferenceSession`; with `optimized` one that records and writes what it does.

    With `profile` it also times each node, and writes that to a file whose name begins so.
    """
    ort = _runtime()
    for name, library in options.plugin_libraries.items():
        _register(ort, name, library)
    providers = _providers(ort, device, options)
    settings = _settings(ort, options)
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    plugins = _plugin_devices(ort)
    plugin_names = {plugin.ep_name for plugin in plugins}
    for name, given in providers:
        if name in plugin_names:
            settings.add_provider_for_devices([p for p in plugins if p.ep_name == name], given)
    built_in = [(name, given) for name, given in providers if name not in plugin_names]
    _add_data(ort, settings, source)
    with _vendor_errors(device), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it says of providers is checked below
        # Providers in the settings and in the argument exclude each other.
        session = (
            ort.InferenceSession(source.model, settings)
            if plugin_names & {name for name, _ in providers}
            else ort.InferenceSession(source.model, settings, providers=built_in)
        )
    check_ports(session)
    started = session.get_providers()
    missing = [name for name, _ in providers if name not in started]
    if missing:
        raise DeviceError(
            f"Execution provider {missing[0]!r} did not start; ONNX Runtime would have run on "
            f"{', '.join(started)} instead.",
            where=f"device {device!r}",
            expected=", ".join(name for name, _ in providers),
            found=", ".join(started),
            hint="Install the libraries that it needs (its driver, CUDA, cuDNN, …), or ask for device 'CPU'.",
        )
    return session


def _add_data(ort: Any, settings: Any, source: OnnxSource) -> None:
    """Give the session the files that the model names, so that it opens none."""
    if not source.data:
        return
    if not hasattr(settings, "add_external_initializers_from_files_in_memory"):
        raise CompileError(
            f"onnxruntime {ort.__version__} cannot take the weights of so large a model from memory.",
            expected="onnxruntime with SessionOptions.add_external_initializers_from_files_in_memory",
            found=ort.__version__,
            hint="Upgrade onnxruntime.",
        )
    views = list(source.data.values())
    settings.add_external_initializers_from_files_in_memory(
        list(source.data), views, [len(view) for view in views]
    )


def _settings(ort: Any, options: OnnxRuntimeOptions) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors; what matters of the warnings is checked or reported
    settings.intra_op_num_threads = options.threads or _allowed_threads()
    settings.inter_op_num_threads = options.inter_threads or _allowed_threads()
    settings.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, _LEVELS[options.graph_optimization_level]
    )
    settings.execution_mode = (
        ort.ExecutionMode.ORT_PARALLEL
        if options.execution_mode == "parallel"
        else ort.ExecutionMode.ORT_SEQUENTIAL
    )
    settings.enable_cpu_mem_arena = options.memory_arena
    settings.enable_mem_pattern = options.memory_pattern
    config = {"session.load_model_format": "ONNX"}
    if options.int8_activations:
        config["session.qdqisint8allowed"] = "1"
    if options.allow_spinning is not None:
        config["session.intra_op.allow_spinning"] = str(int(options.allow_spinning))
        config["session.inter_op.allow_spinning"] = str(int(options.allow_spinning))
    for key, value in {**config, **options.session_config}.items():
        settings.add_session_config_entry(key, str(value))
    return settings


def _allowed_threads() -> int:
    """Return one thread a CPU when this thread may not use all that there are, else 0: the runtime's choice.

    ONNX Runtime counts all cores of the machine, and would pin its threads outside of the allowed ones.
    """
    allowed = usable_cpus()
    return allowed if allowed < (os.cpu_count() or allowed) else 0


@functools.cache
def _register(ort: Any, name: str, library: str) -> None:
    """Register a plugin's library, once in a process."""
    if not hasattr(ort, "register_execution_provider_library"):
        raise DeviceError(
            f"onnxruntime {ort.__version__} takes no plugin providers.", hint="Upgrade to 1.23 or later."
        )
    try:
        ort.register_execution_provider_library(name, library)
    except Exception as error:
        raise DeviceError(
            f"The plugin provider {name!r} cannot be registered: {error}", where=library
        ) from error


@contextlib.contextmanager
def _vendor_errors(device: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CompileError(
            f"ONNX Runtime refuses the model: {str(error).strip()}", where=f"device {device}"
        ) from error
