"""Linear algebra whose results do not depend on the order of sums, so not on cores, threads or BLAS kernels.

A BLAS sums in an order that its threads, its block sizes and the processor's vector width decide, and the
last bits follow. Here both factors of a product are cut into slices of so few bits that every sum of products
is a whole multiple of one unit below 2^53 of them: float64 then adds without rounding, and any order gives
the same bits (Ozaki, Ogita, Oishi and Rump 2012, "Error-free transformations of matrix multiplication"). The
products of slices are added in one order. Everything else is elementwise, or built of such products.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["cholesky", "inverse", "inverse_factor", "matmul", "round_bits", "solve"]

# Sums over more terms are taken in blocks of so many, one after another.
_TERMS = 1 << 15
_BLOCK = 32
_SLICES = 2  # 40 bits or more of the largest of a row, which is what equations of data deserve


def matmul(a: np.ndarray, b: np.ndarray, *, slices: int = _SLICES) -> np.ndarray:
    """Return a @ b in float64, the same bits on every machine.

    Args:
        a: (..., M, K), float.
        b: (..., K, N), float.
        slices: Each slice holds 19 bits or more, counted from the largest magnitude of a row of `a` or of a
            column of `b`. One is enough for data.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    total: np.ndarray | None = None
    for start in range(0, max(a.shape[-1], 1), _TERMS):
        part = _product(a[..., start : start + _TERMS], b[..., start : start + _TERMS, :], slices)
        total = part if total is None else total + part
    assert total is not None
    return total


def _product(a: np.ndarray, b: np.ndarray, slices: int) -> np.ndarray:
    bits = (53 - math.ceil(math.log2(max(a.shape[-1], 2)))) // 2
    left, right = _cut(a, -1, bits, slices), _cut(b, -2, bits, slices)
    # The smallest products first; those below the last slice are left out.
    pairs = sorted(((i, j) for i in range(slices) for j in range(slices - i)), key=lambda p: (-sum(p), p))
    total: np.ndarray | None = None
    for i, j in pairs:
        product = left[i] @ right[j]
        total = product if total is None else total + product
    assert total is not None
    return total


def _cut(array: np.ndarray, axis: int, bits: int, slices: int) -> list[np.ndarray]:
    """Return parts of an array that add up to it, each a multiple of its own unit along an axis."""
    largest = np.abs(array).max(axis=axis, keepdims=True, initial=0.0)
    _, exponent = np.frexp(largest)
    parts = []
    for index in range(1, slices + 1):
        # Units below 2^-1000 would be zero.
        unit = np.ldexp(1.0, np.maximum(exponent - bits * index, -1000))
        part = np.rint(array / unit) * unit
        parts.append(part)
        array = array - part if index < slices else array
    return parts


def cholesky(a: np.ndarray) -> np.ndarray:
    """Return the lower factor L of a = L Lᵀ.

    Args:
        a: (..., K, K), symmetric and positive definite.

    Raises:
        numpy.linalg.LinAlgError: It is not positive definite.
    """
    size = a.shape[-1]
    if size <= _BLOCK:
        return _small_cholesky(a)
    half = size // 2
    lower = np.zeros(a.shape)
    first = cholesky(a[..., :half, :half])
    below = _over(a[..., half:, :half], first)
    lower[..., :half, :half], lower[..., half:, :half] = first, below
    rest = a[..., half:, half:] - matmul(below, np.swapaxes(below, -1, -2), slices=_SLICES)
    lower[..., half:, half:] = cholesky(rest)
    return lower


def _small_cholesky(a: np.ndarray) -> np.ndarray:
    lower = np.array(a, np.float64)
    for j in range(lower.shape[-1]):
        pivot = lower[..., j, j, None]
        if not (pivot > 0).all():
            raise np.linalg.LinAlgError("The matrix is not positive definite.")
        lower[..., j:, j] /= np.sqrt(pivot)
        column = lower[..., j + 1 :, j]
        lower[..., j + 1 :, j + 1 :] -= column[..., :, None] * column[..., None, :]
    result: np.ndarray = np.tril(lower)
    return result


def _over(right: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return B L⁻ᵀ for B (..., M, K)."""
    size = lower.shape[-1]
    if size > _BLOCK:
        half = size // 2
        first = _over(right[..., :half], lower[..., :half, :half])
        update = matmul(first, np.swapaxes(lower[..., half:, :half], -1, -2), slices=_SLICES)
        second = _over(right[..., half:] - update, lower[..., half:, half:])
        return np.concatenate([first, second], axis=-1)
    x = np.array(right, np.float64)
    for j in range(size):
        x[..., j] /= lower[..., j, j, None]
        x[..., j + 1 :] -= x[..., j, None] * lower[..., None, j + 1 :, j]
    return x


def _forward(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return L⁻¹ B for B (..., K, N)."""
    return np.swapaxes(_over(np.swapaxes(right, -1, -2), lower), -1, -2)


def _backward(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return L⁻ᵀ B for B (..., K, N)."""
    flipped = np.swapaxes(lower, -1, -2)[..., ::-1, ::-1]
    return _forward(flipped, right[..., ::-1, :])[..., ::-1, :]


def solve(a: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return x of a x = right, for a symmetric positive definite matrix.

    Where rounding has made it indefinite, its diagonal is raised until it is not.

    Args:
        a: (..., K, K).
        right: (..., K, N).
    """
    lower = _factor(a)
    right = np.broadcast_to(right, (*a.shape[:-2], *right.shape[-2:]))
    return _backward(lower, _forward(lower, right))


def inverse(a: np.ndarray) -> np.ndarray:
    """Return the inverse of a symmetric positive definite matrix, see `solve`."""
    return solve(a, np.eye(a.shape[-1]))


def inverse_factor(a: np.ndarray) -> np.ndarray:
    """Return the upper triangular U with a⁻¹ = Uᵀ U, for a symmetric positive definite matrix (K, K)."""
    # With rows and columns in reverse, a = L Lᵀ becomes a = M Mᵀ with M upper; U is its inverse.
    lower = _factor(a[::-1, ::-1])
    return np.ascontiguousarray(_forward(lower, np.eye(len(a)))[::-1, ::-1])


def _factor(a: np.ndarray) -> np.ndarray:
    size = a.shape[-1]
    raised = 0.0
    while True:
        try:
            return cholesky(a + raised * np.eye(size) if raised else a)
        except np.linalg.LinAlgError:
            largest = float(np.abs(np.diagonal(a, axis1=-2, axis2=-1)).max(initial=0.0))
            raised = 10 * raised if raised else 1e-12 * largest + 1e-30
            if not math.isfinite(raised):
                raise


def round_bits(array: np.ndarray, bits: int = 12) -> np.ndarray:
    """Return the values rounded to so many bits, float64: what comes of an exp or log differs in the last.

    Args:
        array: Finite values of any shape.
        bits: Of the mantissa. 12 are enough for a factor that was estimated.
    """
    mantissa, exponent = np.frexp(np.asarray(array, np.float64))
    rounded: np.ndarray = np.ldexp(np.rint(mantissa * 2.0**bits), exponent - bits)
    return rounded
