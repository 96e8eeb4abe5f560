"""What the checks of the conformance suite have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from edgeinfer.errors import BackendError, EdgeInferError
from edgeinfer.graph.build import compile_model
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session
from edgeinfer.testing.models import ReferenceModel

__all__ = [
    "Options",
    "assert_close",
    "assert_own_memory",
    "assert_raises",
    "open_session",
    "open_session_or_none",
]

Options = Mapping[str, object] | None

RTOL, ATOL = 1e-4, 1e-5  # float32 arithmetic in another order of summation


def open_session(backend: str, reference: ReferenceModel, options: Options) -> Session:
    """Compile a model and load it."""
    return load(compile_model(reference.model, backend, options=options))


def open_session_or_none(backend: str, reference: ReferenceModel, options: Options) -> Session | None:
    """Compile a model that a backend may refuse, as long as it does so by a BackendError, and load it."""
    try:
        return open_session(backend, reference, options)
    except BackendError:
        return None


def assert_close(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], where: str) -> None:
    """Compare names, order, shapes, dtypes and values; floats as `numpy.allclose` does."""
    assert list(outputs) == list(expected), f"{where}: outputs {list(outputs)}, expected {list(expected)}"
    for name, array in expected.items():
        found = outputs[name]
        assert found.shape == array.shape, f"{where}: {name} is {found.shape}, not {array.shape}"
        assert found.dtype == array.dtype, f"{where}: {name} is {found.dtype}, not {array.dtype}"
        if array.dtype.kind in "fiub":
            np.testing.assert_allclose(found, array, rtol=RTOL, atol=ATOL, err_msg=f"{where}: {name}")
        else:  # strings, and dtypes that numpy does not have
            assert found.tolist() == array.tolist(), f"{where}: {name} is {found}, not {array}"


def assert_own_memory(arrays: Iterable[np.ndarray], where: str) -> None:
    """No two of the arrays share memory."""
    held = [*arrays]
    for index, array in enumerate(held):
        assert not any(np.shares_memory(array, other) for other in held[index + 1 :]), (
            f"{where}: two arrays share memory"
        )


def assert_raises(error: type[EdgeInferError], call: Callable[[], object]) -> None:
    """The call raises that error, and no other."""
    try:
        call()
    except error:
        return
    except Exception as other:
        raise AssertionError(f"expected {error.__name__}, got {type(other).__name__}: {other}") from other
    raise AssertionError(f"expected {error.__name__}, but nothing was raised")
