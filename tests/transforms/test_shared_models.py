"""Every shared model goes through Simplify and FuseBatchNorm with its outputs unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from edgeinfer.model.model import Model
from edgeinfer.transforms import FuseBatchNorm, Pipeline, Simplify

# name: number of nodes before and after
NODES = {
    "mobilenet_v2_1.0_224": (101, 101),
    "squeezenet1_1": (65, 65),
    "cifar10_resnet20": (104, 56),
    "cifar10_resnet8_mlperf": (23, 23),
    "vww_mobilenetv1_025_96": (58, 58),
    "kws_dscnn": (38, 21),
    "mnist_cntk": (12, 9),
    "nanodet_m_320": (227, 227),
    "silero_vad_16k": (167, 46),
    "espcn_x3": (8, 8),
    "minilm_l6_fp16w": (526, 321),
}


@pytest.mark.data
@pytest.mark.parametrize("name", NODES)
def test_simplify_and_fuse(name, models, baselines, run) -> None:
    model = Model.load(models(name))
    pipeline = Pipeline((Simplify(), FuseBatchNorm()))
    after, _ = pipeline.apply(model)
    before_count, most = NODES[name]
    assert len(list(model.ir.graph.all_nodes())) == before_count
    assert len(list(after.ir.graph.all_nodes())) <= most
    assert after.signature == model.signature
    assert after.nbytes <= model.nbytes
    assert not pipeline.apply(after).report.modified
    rng = np.random.default_rng(0)
    feed = {
        key: value if value.dtype.kind == "i" else rng.standard_normal(value.shape).astype(value.dtype)
        for key, value in baselines.TASKS[name][1].items()
    }
    for expected, found in zip(run(model, feed), run(after, feed), strict=True):
        assert np.abs(expected - found).max() <= 1e-3 * np.abs(expected).max()
