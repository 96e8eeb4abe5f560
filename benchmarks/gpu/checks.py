"""Whether the backend runs rightly on this GPU: checks of its own, and the conformance suite."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from results import Results, latency

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.cuda import Cuda, find_gpus
from edgeinfer.backends.tensorrt_.flavours import find_flavours
from edgeinfer.errors import ArtifactMismatchError, InputError

__all__ = ["check_running", "conformance_checks", "options_for_flavour"]

HEAD = '<ir_version: 8, opset_import: ["" : 15]>\n'


def options_for_flavour(sources: tuple[str, ...] = ()) -> dict[str, Any]:
    # TensorRT 8 would load cuBLAS and cuDNN, which a machine may lack; its own kernels do without them.
    if find_flavours()[0].strongly_typed:
        return {}
    return {"tactic_sources": sources or ("edge_mask_convolutions", "jit_convolutions")}


def text_model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def check_running(results: Results, options: Mapping[str, Any]) -> None:
    relu = text_model("g (float[N,4] x) => (float[N,4] y) { s = Mul(x, x)\n y = Sub(s, x) }")
    x = np.arange(8, dtype=np.float32).reshape(2, 4)

    def dynamic() -> dict[str, Any]:
        artifact = ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (1, 2, 8)}})
        with ei.load(artifact) as session:
            for count in (1, 2, 2, 2, 8, 3):
                given = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)
                np.testing.assert_allclose(session.infer({"x": given})["y"], given * given - given, atol=1e-6)
            try:
                session.infer({"x": np.zeros((9, 4), np.float32)})
            except InputError as error:
                return {"refused": str(error).splitlines()[0]}
        raise AssertionError("a shape outside of the profile was accepted")

    def ownership_and_graphs() -> dict[str, Any]:
        with ei.load(ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}})) as session:
            first = session.infer({"x": x})["y"]
            kept = first.copy()
            for scale in range(2, 6):
                got = session.infer({"x": scale * x})["y"]
                np.testing.assert_allclose(got, (scale * x) ** 2 - scale * x, atol=1e-5)
            np.testing.assert_array_equal(first, kept)
            return {"notes": session.execution().notes, "memory": session._runner.device_memory_bytes}

    def threads() -> dict[str, Any]:
        wrong: list[int] = []
        with ei.load(
            ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}}),
            options={"max_in_flight": 4},
        ) as session:

            def work(scale: int) -> None:
                for _ in range(200):
                    got = session.infer({"x": scale * x})["y"]
                    if not np.allclose(got, (scale * x) ** 2 - scale * x, atol=1e-4):
                        wrong.append(scale)

            pool = [threading.Thread(target=work, args=(scale,)) for scale in range(1, 9)]
            for thread in pool:
                thread.start()
            for thread in pool:
                thread.join()
            streamed = list(session.stream([{"x": k * x} for k in range(1, 50)], in_flight=4))
        assert not wrong, wrong
        for k, outputs in enumerate(streamed, 1):
            np.testing.assert_allclose(outputs["y"], (k * x) ** 2 - k * x, rtol=1e-5, atol=1e-4)
        return {"requests": 1600 + len(streamed)}

    def device_arrays() -> dict[str, Any]:
        cuda = Cuda.open(0)  # nothing else changes the device in this process
        device, host = cuda.call("cudaMalloc", x.nbytes), np.ascontiguousarray(3 * x)
        kind = cuda._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        cuda.call("cudaMemcpy", device, host.ctypes.data, host.nbytes, kind)

        class OnDevice:
            __cuda_array_interface__ = {  # noqa: RUF012
                "data": (int(device), False),
                "shape": x.shape,
                "typestr": "<f4",
                "version": 3,
                "stream": 1,
            }

        with ei.load(ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}})) as session:
            for _ in range(3):
                got = session.infer({"x": OnDevice()})["y"]
                np.testing.assert_allclose(got, (3 * x) ** 2 - 3 * x, atol=1e-5)
                np.testing.assert_allclose(session.infer({"x": x})["y"], x * x - x, atol=1e-6)
        cuda.call("cudaFree", device)
        return {}

    def bound() -> dict[str, Any]:
        artifact = ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}})
        with ei.load(artifact) as session, session.bind({"x": (2, 4)}) as binding:
            for scale in range(1, 6):
                binding.inputs["x"][...] = scale * x
                binding.run()
                np.testing.assert_allclose(binding.outputs["y"], (scale * x) ** 2 - scale * x, atol=1e-5)
            return latency(binding.run, 0.5)

    def data_dependent() -> dict[str, Any]:
        model = text_model("g (float[6] x) => (int64[1,K] y) { y = NonZero(x) }")
        with ei.load(ei.compile(model, "tensorrt", options=options)) as session:
            for values in ([0, 1, 0, 2, 0, 3], [0] * 6, [1] * 6):
                got = session.infer({"x": np.array(values, np.float32)})["y"]
                np.testing.assert_array_equal(got, np.array(np.nonzero(values)))
        return {}

    def preflight() -> dict[str, Any]:
        import attrs

        artifact = ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}})
        requires = dict(artifact.manifest.requires) | {"compute_capability": ("3.0",)}
        try:
            ei.load(attrs.evolve(artifact, manifest=attrs.evolve(artifact.manifest, requires=requires)))
        except ArtifactMismatchError as error:
            return {"refused": str(error), "requires": dict(artifact.manifest.requires)}
        raise AssertionError("an engine of another GPU was accepted")

    def layer_times() -> dict[str, Any]:
        with ei.load(ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (1, 2, 2)}})) as session:
            for count in (2, 1, 2):
                np.testing.assert_allclose(session.infer({"x": x[:count]})["y"], x[:count] ** 2 - x[:count])
                times = session.profile({"x": x[:count]}, runs=5)
                assert times, "no layer was timed"
                assert all(time.us > 0 for time in times), times
        return {"layers": [(time.name, round(time.us, 2)) for time in times]}

    checks = [dynamic, ownership_and_graphs, threads, device_arrays, bound, data_dependent, preflight]
    checks.append(layer_times)
    if len(find_gpus()[0]) > 1:
        checks.append(lambda: two_gpus(relu, options))
        checks[-1].__name__ = "two_gpus"
    for check in checks:
        results.step(check, step="check", check=check.__name__)


def two_gpus(model: onnx.ModelProto, options: Mapping[str, Any]) -> dict[str, Any]:
    """Sessions on two GPUs take turns in one thread, run at once in two, and do not mix their memory up."""
    dims = {"dims": {"N": (1, 2, 64)}}
    with contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(
                ei.load(ei.compile(model, "tensorrt", device=device, options={**options, **dims}))
            )
            for device in ("GPU", "GPU.1")
        ]
        rng = np.random.default_rng(0)
        for step in range(60):
            x = rng.standard_normal((1 + step % 5, 4)).astype(np.float32)
            for session in sessions:
                np.testing.assert_allclose(session.infer({"x": x})["y"], x * x - x, atol=1e-5)

        wrong: list[int] = []

        def work(index: int) -> None:
            for step in range(500):
                x = np.full((2, 4), index + step, np.float32)
                if not np.allclose(sessions[index].infer({"x": x})["y"], x * x - x, rtol=1e-5):
                    wrong.append(step)

        pool = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        assert not wrong, wrong
        bound = [stack.enter_context(session.bind({"x": (2, 4)})) for session in sessions]
        for step in range(20):
            for binding in bound:
                binding.inputs["x"][...] = step
                binding.run()
                np.testing.assert_allclose(binding.outputs["y"], float(step * step - step))
        for binding in bound:
            binding.close()
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(
                ei.load(
                    ei.compile(model, "tensorrt", device=device, options={**options, **dims}),
                    options={"outputs": "device"},
                )
            )
            for device in ("GPU", "GPU.1")
        ]
        first = made[0].infer({"x": np.ones((2, 4), np.float32)})["y"]
        try:
            made[1].infer({"x": first})
        except InputError as error:
            return {"refused": str(error).splitlines()[0]}
    raise AssertionError("an array on another GPU was accepted")


def conformance_checks(results: Results, options: Mapping[str, Any], seconds: float = 90) -> None:
    """In a process of its own: a broken library could take all down."""
    code = (
        f"import json\noptions = {dict(options)!r}\n"
        "from edgeinfer.testing import conformance\n"
        "for check in conformance.CHECKS:\n"
        "    row = {'step': 'conformance', 'check': check.__name__}\n"
        "    try: check('tensorrt', options)\n"
        "    except BaseException as error: row['error'] = f'{type(error).__name__}: {error}'[:600]\n"
        "    print(json.dumps(row), flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    for line in process.stdout or ():
        if line.startswith("{"):
            results.add(**json.loads(line))
    timer.cancel()
    if process.wait():
        raise RuntimeError(f"the process ended with {process.returncode} (-9: out of its {seconds} s)")
