"""A session in a forked child: a typed error, never a hang or a crash, and nothing is freed there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# Each child says by its exit code what it saw; a child that hangs is killed.
PRELUDE = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore")  # from 3.12 on, Python warns of a fork beside threads
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
import edgeinfer as ei
from edgeinfer.errors import BackendUnavailableError, ForkedSessionError, SessionClosedError

backend, threads = sys.argv[1], int(sys.argv[2])
w = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 256])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 256])],
    [numpy_helper.from_array(w, "w")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
artifact = ei.compile(model, backend, options={"threads": threads})
x = np.ones((64, 256), np.float32)

def child(work, leave=os._exit):
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work() or 0
        finally:
            leave(code)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hang"

def raises(error, call):
    try:
        call()
    except error:
        return
    sys.exit("nothing was raised")

def expect(found, code=0):
    assert found == code, found

session = ei.load(artifact)
session.infer(x)
"""


def run(body: str, backend: str, threads: int) -> None:
    pytest.importorskip(backend)
    code = PRELUDE + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", code, backend, str(threads)],
        cwd=ROOT,
        # Without it a thread of ONNX Runtime's telemetry hangs any child that ends by sys.exit.
        env={**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


BACKENDS = pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
THREADS = pytest.mark.parametrize("threads", [1, 4])


@BACKENDS
@THREADS
def test_every_use_in_a_child_is_a_typed_error(backend, threads):
    run(
        """
        bound = session.bind()
        stream = session.stream([x] * 9, in_flight=2)
        next(stream)

        def work():
            for use in (
                lambda: session.infer(x), session.bind, session.execution, bound.run,
                lambda: session.stream([x]), lambda: session.profile(x), session.__enter__,
            ):
                raises(ForkedSessionError, use)
            raises(SessionClosedError, lambda: next(stream))
            assert session.closed
            session.close()
            bound.close()

        expect(child(work))
        assert not session.closed
        bound.run()
        assert len(list(stream)) == 8
        session.infer(x)
        """,
        backend,
        threads,
    )


@BACKENDS
@THREADS
def test_a_child_may_end_as_any_process_does(backend, threads):
    # The interpreter frees what it holds at its end: the runtime would wait for threads that are not there.
    run("expect(child(lambda: 0, leave=sys.exit))", backend, threads)


@BACKENDS
@THREADS
def test_forked_while_other_threads_infer(backend, threads):
    run(
        """
        stop = []

        def infer():
            while not stop:
                session.infer(x)

        others = [threading.Thread(target=infer) for _ in range(2)]
        for other in others:
            other.start()
        time.sleep(0.2)
        found = [child(lambda: raises(ForkedSessionError, lambda: session.infer(x))) for _ in range(8)]
        stop.append(1)
        for other in others:
            other.join()
        assert found == [0] * 8, found
        """,
        backend,
        threads,
    )


@THREADS
def test_onnxruntime_loads_again_in_a_child(threads):
    run(
        """
        expected = session.infer(x)["y"]

        def work():
            with ei.load(artifact) as own:
                np.testing.assert_allclose(own.infer(x)["y"], expected, rtol=1e-4)

        expect(child(work))
        """,
        "onnxruntime",
        threads,
    )


@THREADS
def test_openvino_says_that_it_does_not_work_in_a_child(threads):
    run(
        """
        def work():
            raises(BackendUnavailableError, lambda: ei.load(artifact))
            raises(BackendUnavailableError, lambda: ei.compile(model, "openvino"))
            assert not ei.backends()["openvino"].load().capabilities().available

        expect(child(work))
        """,
        "openvino",
        threads,
    )
