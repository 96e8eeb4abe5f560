"""What others do, on the same graphs: channels by a calibrated score, 2:4 by SparseGPT, Torch-Pruning.

No package was found that prunes channels of an ONNX file, so `calibrated_channels` is that method in our
terms: a channel's score is its mean absolute activation times the norms of the weights that read it, each
layer's scores relative to their sum; the lowest go, over all layers, until the budget is met; channels of
residual sums and those that more than one layer reads stay; nothing is refitted.
`torch_pruning_channels` goes by way of PyTorch, and needs `torch`, `onnx2torch` and `torch-pruning`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np

from edgeinfer.graph.channels.groups import analyze
from edgeinfer.graph.layers import find_layers, layout_of
from edgeinfer.model.model import Model
from edgeinfer.pruning.budget.allocate import allocate
from edgeinfer.pruning.budget.cost import CostModel
from edgeinfer.pruning.budget.criteria import weight_columns
from edgeinfer.pruning.budget.observed_shapes import observe_shapes
from edgeinfer.pruning.reconstruction.frontier import run, tap
from edgeinfer.pruning.reconstruction.statistics import columns_of_each_feed, input_moments
from edgeinfer.pruning.sparse_masks import group_order, upper_factor
from edgeinfer.pruning.structure.prepare import prepare
from edgeinfer.pruning.structure.surgery import remove_channels

Feed = Mapping[str, np.ndarray]


def calibrated_channels(model: Model, feeds: Sequence[Feed], keep: float) -> tuple[Model, float]:
    """Return the pruned model and the part of the multiply-accumulates that it has left."""
    work = model.copy_ir()
    prepare(work)
    found = analyze(work.graph)
    layers = {layer.name: layer for layer in found.layers}
    groups = [
        group
        for group in found.groups
        if group.kind == "channel"
        and len(group.consumers) == 1
        and sum(layers[name].groups == 1 for name in group.producers) == 1
    ]
    readers = {group.name: layers[group.consumers[0]] for group in groups}
    inputs = list(dict.fromkeys(layer.input.name or "" for layer in readers.values()))
    size: dict[str, np.ndarray] = {}
    with tap(work, inputs) as session:
        for values in run(session, feeds):
            for name, layer in readers.items():
                x = np.moveaxis(np.abs(values[layer.input.name or ""]), 1 if layer.kind == "Conv" else -1, 0)
                size[name] = size.get(name, 0.0) + x.reshape(len(x), -1).mean(1)
    orders, errors, chosen = {}, {}, []
    for group in groups:
        layer = readers[group.name]
        columns = weight_columns(group, layer)
        if columns is None:
            continue
        norms = np.abs(layer.matrices()).sum((0, 1))
        scores = (norms * np.repeat(size[group.name], layer.taps))[columns].sum(1)
        orders[group.name] = np.argsort(scores)
        errors[group.name] = (np.cumsum(np.sort(scores)) / scores.sum()).tolist()
        chosen.append(group)
    cost = CostModel.of(
        work.graph, attrs.evolve(found, groups=tuple(chosen)), "macs", observe_shapes(work, feeds).tensors
    )
    counts = allocate(chosen, errors, cost, keep * cost.cost({}), multiple=1)
    gone = [found.members[name][c] for name, n in counts.items() for c in orders[name][:n]]
    remove_channels(work, found, gone)
    return Model(work), cost.cost(counts) / cost.cost({})


def sparse_gpt(model: Model, feeds: Sequence[Feed], *, columns: int = 24_000) -> Model:
    """Return the model with 2:4 weights by SparseGPT's one pass (Frantar and Alistarh 2023).

    All inputs are those of the float model; two of four go by w² / U_jj², and the columns to come make up.
    """
    work = model.copy_ir()
    prepare(work)
    layers = [
        layer
        for layer in find_layers(work.graph)
        if layer.groups == 1
        and layer.kind != "ConvTranspose"
        and layout_of(layer).rows // layer.taps % 4 == 0
    ]
    moments = input_moments(work, layers, feeds, columns_of_each_feed(feeds, columns))
    for layer in layers:
        order = group_order(layer, 4)
        weight = layer.matrices()[0][:, order]
        upper = upper_factor(moments[layer.name].hessian[0], order)
        for start in range(0, weight.shape[1], 4):
            scores = np.square(weight[:, start : start + 4] / np.diag(upper)[start : start + 4])
            dropped = np.argsort(np.argsort(scores, 1), 1) < 2
            for offset in range(4):
                j = start + offset
                error = np.where(dropped[:, offset], weight[:, j], 0.0) / upper[j, j]
                weight[:, j:] -= error[:, None] * upper[j, j:]
        result = np.empty_like(weight)
        result[:, order] = weight
        layer.write(result[None])
    return Model(work)


def torch_pruning_channels(
    path: str, example: Feed, keep: float
) -> tuple[Callable[[Feed, object], list[np.ndarray]], float]:
    """Return a function that runs the model as Torch-Pruning's group magnitude left it, and its MACs kept.

    Raises:
        Exception: Whatever PyTorch, onnx2torch or Torch-Pruning raise on a graph that they cannot take.
    """
    import onnx2torch
    import torch
    import torch_pruning

    net = onnx2torch.convert(path).eval()
    inputs = tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in example.values())
    last = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)][-1]
    before, _ = torch_pruning.utils.count_ops_and_params(net, inputs)
    pruner = torch_pruning.pruner.MetaPruner(
        net,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.9,
        iterative_steps=200,
        ignored_layers=[last],
    )
    after = before
    while after > keep * before:
        pruner.step()
        left, _ = torch_pruning.utils.count_ops_and_params(net, inputs)
        if left == after:
            break
        after = left

    def infer(feed: Feed, _: object = None) -> list[np.ndarray]:
        with torch.no_grad():
            result = net(*(torch.from_numpy(np.ascontiguousarray(value)) for value in feed.values()))
        many = result if isinstance(result, tuple | list) else (result,)
        return [value.numpy() for value in many]

    return infer, after / before if math.isfinite(before) else 1.0
