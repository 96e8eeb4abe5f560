"""The features that a fit prices."""

from __future__ import annotations

import attrs
import pytest

from edgeinfer.estimate.features import add_up, features
from edgeinfer.estimate.kernel import Kernel

CONV = Kernel(
    node="c", kind="conv", precision="float32", macs=9_000_000, outs=64, ins=64, taps=9, width=28,
    positions=784, read_bytes=200_000, written_bytes=300_000, weight_bytes=147_456,
)  # fmt: skip


def test_a_convolution_that_fills_its_blocks():
    assert features(CONV) == {
        "any/float32/calls": 1.0,
        "any/float32/moved_mb": 0.5,
        "any/float32/weights_mb": pytest.approx(0.147456),
        "conv/float32/megamacs": 9.0,
        "conv/float32/moved_mb": 0.5,
    }


@pytest.mark.parametrize(
    ("changes", "feature", "value"),
    [
        ({"outs": 60}, "conv_ragged/float32/megamacs", 9.0 * 64 / 60),
        ({"width": 26}, "conv/float32/megamacs", 9.0 * 28 / 26),
        ({"ins": 3}, "first/float32/megamacs", 9.0),
        ({"kind": "depthwise", "groups": 63}, "depthwise_ragged/float32/megamacs", 9.0 * 64 / 63),
        ({"kind": "gemm", "width": 1}, "gemv/float32/calls", 1.0),
        ({"kind": "pool", "operations": 100_000, "taps": 9}, "pool/float32/operations_m", 0.9),
        (
            {"kind": "average_pool", "operations": 100_000, "taps": 9},
            "average_pool/float32/operations_m",
            0.9,
        ),
        ({"ins": 3, "outs": 60}, "first/float32/megamacs", 9.0 * 64 / 60),
        ({"precision": "int8"}, "conv/int8/megamacs", 9.0),
    ],
)
def test_kinds_and_rounding(changes, feature, value):
    assert features(attrs.evolve(CONV, **changes))[feature] == pytest.approx(value)


def test_weights_beyond_a_cache_count_again():
    small, large = add_up([CONV]), add_up([attrs.evolve(CONV, weight_bytes=3_000_000)] * 2)
    assert not any("beyond" in name for name in small)
    assert large["any/float32/weights_beyond_0.5_mb"] == 6.0
    assert large["any/float32/weights_beyond_4_mb"] == 6.0
    assert large["any/float32/calls"] == 2
    assert large["run/calls"] == 1


def test_a_block_is_as_wide_as_the_machines_vectors():
    assert features(attrs.evolve(CONV, outs=24))["conv/float32/megamacs"] == 9.0
    wide = features(attrs.evolve(CONV, outs=24), block=16)
    assert wide["conv_ragged/float32/megamacs"] == pytest.approx(9.0 * 32 / 24)


def test_integers_have_a_block_of_their_own():
    kernel = attrs.evolve(CONV, outs=48)
    for precision, value in (("float32", 9.0), ("int8", 9.0 * 64 / 48)):
        found = features(attrs.evolve(kernel, precision=precision), block=16, integer_block=64)
        assert found[f"conv/{precision}/megamacs"] == pytest.approx(value)


def test_open_shapes_count_kernels_and_tensors_again():
    fixed, opened = add_up([CONV] * 2), add_up([CONV] * 2, open_shapes=True)
    assert opened.items() - fixed.items() == {("open/float32/calls", 2.0), ("open/float32/moved_mb", 1.0)}
