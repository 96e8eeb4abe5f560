"""Latency of ONNX models in PyTorch, with the same graph and weights, host to host: a peer of TensorRT.

    python onnx_torch.py --models \\
        '{"a": {"files": {"float32": "a.onnx"}, "shapes": {"input": [1, 3, 224, 224]}}}'

Prints one JSON object a line. It runs in the interpreter that has PyTorch, which need not be edgeinfer's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import numpy_helper


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def conv(x, w, b=None, *, a):
    pads = a.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        x, pads = F.pad(x, (pads[1], pads[3], pads[0], pads[2])), [0, 0]
    return F.conv2d(x, w, b, a.get("strides", 1), pads[:2], a.get("dilations", 1), a.get("group", 1))


def pool(function: Callable, fill: float):
    def run(x, *, a):
        pads = a.get("pads", [0, 0, 0, 0])
        if any(pads):
            x = F.pad(x, (pads[1], pads[3], pads[0], pads[2]), value=fill)
        return function(x, a["kernel_shape"], a.get("strides", 1), ceil_mode=bool(a.get("ceil_mode", 0)))

    return run


def gemm(x, w, c=None, *, a):
    y = (x.T if a.get("transA") else x) @ (w.T if a.get("transB") else w) * a.get("alpha", 1.0)
    return y if c is None else y + c * a.get("beta", 1.0)


def reshape(x, shape, *, a):
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def depth_to_space(x, *, a):
    size = a["blocksize"]
    if a.get("mode", b"DCR") == b"CRD":
        return F.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    y = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // size**2, h * size, w * size)


def resize(x, roi=None, scales=None, sizes=None, *, a):
    if sizes is None:
        sizes = [size * scale for size, scale in zip(x.shape, scales, strict=True)]
    mode = {b"nearest": "nearest", b"linear": "bilinear"}[a.get("mode", b"nearest")]
    corners = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(x, [round(size) for size in sizes[2:]], mode=mode, **corners)


def split(x, sizes=None, *, a):
    axis = a.get("axis", 0)
    return x.split(x.shape[axis] // 2 if sizes is None else sizes, axis)


def reduce_sum(x, axes, *, a):
    return x.sum(tuple(axes), keepdim=bool(a.get("keepdims", 1)))


OPS: dict[str, Callable] = {
    "Conv": conv,
    "Relu": lambda x, *, a: F.relu(x),
    "LeakyRelu": lambda x, *, a: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Sigmoid": lambda x, *, a: torch.sigmoid(x),
    "Erf": lambda x, *, a: torch.erf(x),
    "Tanh": lambda x, *, a: torch.tanh(x),
    "Clip": lambda x, low=None, high=None, *, a: torch.clamp(
        x, a.get("min") if low is None else low, a.get("max") if high is None else high
    ),
    "Add": lambda x, y, *, a: x + y,
    "Mul": lambda x, y, *, a: x * y,
    "MatMul": lambda x, y, *, a: x @ y,
    "Gemm": gemm,
    "Gather": lambda x, index, *, a: x.select(a.get("axis", 0), index),
    "LayerNormalization": lambda x, w, b, *, a: F.layer_norm(x, w.shape, w, b, a.get("epsilon", 1e-5)),
    "ReduceSum": reduce_sum,
    "Resize": resize,
    "Split": split,
    "GlobalAveragePool": lambda x, *, a: x.mean((2, 3), keepdim=True),
    "ReduceMean": lambda x, axes=None, *, a: x.mean(
        tuple(a["axes"] if axes is None else axes), keepdim=bool(a.get("keepdims", 1))
    ),
    "MaxPool": pool(F.max_pool2d, float("-inf")),
    "AveragePool": pool(F.avg_pool2d, 0.0),
    "Reshape": reshape,
    "Flatten": lambda x, *, a: x.flatten(a.get("axis", 1)),
    "Softmax": lambda x, *, a: F.softmax(x, a.get("axis", -1)),
    "Concat": lambda *xs, a: torch.cat(xs, a["axis"]),
    "Transpose": lambda x, *, a: x.permute(a["perm"]),
    "DepthToSpace": depth_to_space,
    "Dropout": lambda x, *_, a: x,
    "Identity": lambda x, *, a: x,
}


class OnnxModule(torch.nn.Module):
    def __init__(self, model: onnx.ModelProto, dtype: torch.dtype) -> None:
        super().__init__()
        unknown = {node.op_type for node in model.graph.node} - set(OPS) - {"Constant"}
        if unknown:
            raise NotImplementedError(f"no PyTorch form here of {', '.join(sorted(unknown))}")
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                weights[node.output[0]] = numpy_helper.to_array(attributes(node)["value"])
        # Shapes, axes and the scales of Resize are numbers of Python, as in code for PyTorch: torch.compile
        # splits the graph wherever a tensor is turned into numbers, and copies weights that are no buffers.
        scales = {name for n in model.graph.node if n.op_type == "Resize" for name in n.input[1:]}
        self.numbers: dict[str, object] = {"": None}
        self.weights: dict[str, str] = {}
        for number, (name, array) in enumerate(weights.items()):
            if array.dtype.kind == "f" and name not in scales:
                self.weights[name] = f"weight_{number}"
                self.register_buffer(f"weight_{number}", torch.from_numpy(np.array(array)).to("cuda", dtype))
            else:
                self.numbers[name] = array.tolist()
        nodes = [node for node in model.graph.node if node.op_type != "Constant"]
        self.steps = [(OPS[n.op_type], list(n.input), list(n.output), attributes(n)) for n in nodes]
        self.names = [value.name for value in model.graph.input if value.name not in weights]
        self.results = [value.name for value in model.graph.output]

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        values = {**self.numbers, **dict(zip(self.names, inputs, strict=True))}
        values.update({name: getattr(self, buffer) for name, buffer in self.weights.items()})
        for function, names, outputs, a in self.steps:
            found = function(*(values[name] for name in names), a=a)
            values.update(zip(outputs, found if len(outputs) > 1 else [found], strict=True))
        return [values[name] for name in self.results]


def median_ms(run: Callable[[], object], seconds: float) -> tuple[float, float, int]:
    for _ in range(10):
        run()
    torch.cuda.synchronize()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 30:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times)), float(np.percentile(times, 99)), len(times)


Step = Callable[[], list[torch.Tensor]]


def captured(module: torch.nn.Module, inputs: list[torch.Tensor]) -> Step:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            module(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = module(*inputs)

    def replay() -> list[torch.Tensor]:
        graph.replay()
        return outputs

    return replay


def round_trip(step: Step, inputs: list[torch.Tensor]) -> Callable[[], None]:
    """The host copies that edgeinfer's latency includes, too: every input in and every output back.

    Both are pinned, as in edgeinfer's bound mode: the best that PyTorch can do. The caller waits for the end.
    """
    given = [torch.zeros(t.shape, dtype=t.dtype).pin_memory() for t in inputs]
    taken = [torch.zeros(t.shape, dtype=t.dtype).pin_memory() for t in step()]

    def run() -> None:
        for host, tensor in zip(given, inputs, strict=True):
            tensor.copy_(host, non_blocking=True)
        for host, tensor in zip(taken, step(), strict=True):
            host.copy_(tensor, non_blocking=True)

    return run


PRECISIONS = (("float16", torch.float16), ("tf32", torch.float32), ("float32", torch.float32))


def measure(path: str, shapes: dict[str, list[int]], precision: str, dtype: torch.dtype, mode: str):
    """Return p50, p99 and the runs of one model in one way."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    with torch.inference_mode():
        module = OnnxModule(onnx.load(path), dtype).eval()
        inputs = [torch.randn(shapes[i], device="cuda", dtype=dtype) for i in module.names]
        step: Step = lambda: module(*inputs)  # noqa: E731
        if mode == "CUDA graph":
            step = captured(module, inputs)
        elif mode == "torch.compile":
            torch._dynamo.reset()  # else the second batch size makes sizes symbols, which is slower
            made = torch.compile(module, mode="reduce-overhead", dynamic=False)
            step = lambda: made(*inputs)  # noqa: E731
        return median_ms(round_trip(step, inputs), 1.0)


def with_batch(shapes: dict[str, list[int]], batch: int) -> dict[str, list[int]]:
    """A first axis of another size than 1 is no batch (the state of a recurrent model)."""
    return {name: [batch if shape[0] == 1 else shape[0], *shape[1:]] for name, shape in shapes.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=json.loads, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batches", default="1", help="sizes of the first axis, separated by commas")
    parser.add_argument("--compile", action="store_true", help="torch.compile of float16, too (slow)")
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    end = time.monotonic() + given.seconds
    ways = [(*precision, mode) for mode in ("eager", "CUDA graph") for precision in PRECISIONS]
    ways += [(*PRECISIONS[0], "torch.compile")] if given.compile else []
    for precision, dtype, mode in ways:
        for name, model in given.models.items():
            for batch in map(int, given.batches.split(",")):
                row = {"step": "torch", "model": name, "precision": precision, "mode": mode, "batch": batch}
                shapes = with_batch(model["shapes"], batch)
                try:
                    if time.monotonic() > end:
                        raise TimeoutError("out of time")  # noqa: TRY301
                    p50, p99, runs = measure(model["files"]["float32"], shapes, precision, dtype, mode)
                    row |= {"p50_ms": p50, "p99_ms": p99, "runs": runs, "torch": torch.__version__}
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"[:500]
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
