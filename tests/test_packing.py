"""Values of less than a byte, as ONNX packs them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeinfer.numerics.packing import bits_of, is_packed, pack, unpack

DTYPES = {
    "INT4": ml_dtypes.int4,
    "UINT4": ml_dtypes.uint4,
    "FLOAT4E2M1": ml_dtypes.float4_e2m1fn,
    "INT2": ml_dtypes.int2,
    "UINT2": ml_dtypes.uint2,
}


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3), st.integers(0, 2**32 - 1))
def test_packing_is_that_of_onnx_and_comes_back(kind, shape, seed):
    dtype = np.dtype(DTYPES[kind])
    bits = bits_of(dtype)
    codes = np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(np.uint8)
    array = unpack(pack(codes.view(np.uint8).astype(np.float32).astype(dtype)), tuple(shape), dtype)
    packed = pack(array)
    assert packed.shape == (-(-array.size * bits // 8),)
    found = unpack(packed, tuple(shape), dtype)
    assert found.dtype == dtype
    assert found.shape == tuple(shape)
    assert found.tolist() == array.tolist()
    proto = helper.make_tensor("t", getattr(TensorProto, kind), shape, packed.tobytes(), raw=True)
    assert numpy_helper.to_array(proto).astype(np.float32).tolist() == array.astype(np.float32).tolist()


@pytest.mark.parametrize("dtype", [np.int8, np.float32, np.object_, ml_dtypes.bfloat16])
def test_other_dtypes_have_their_bytes(dtype):
    assert not is_packed(np.dtype(dtype))
    assert bits_of(np.dtype(dtype)) == 8 * np.dtype(dtype).itemsize
