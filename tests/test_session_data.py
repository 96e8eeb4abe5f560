"""What a session does with unusual data: reused arrays, sizes that depend on values, defaults, strings."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np
import onnx
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.artifact.signature import TensorSpec
from edgeinfer.errors import InferenceError, InputError
from edgeinfer.runtime.session import Session
from tests.session_kit import BACKENDS, DYNAMIC, HEADER, STATIC, FakeRunner, fake_session, feeds, load


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


# Streams: what the source does with its arrays, and when it fails


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_stream_takes_a_copy_of_each_input(backend, in_flight):
    def source() -> Iterator[dict[str, np.ndarray]]:
        buffer = {"x": np.empty((4, 3), np.float32)}
        for i in range(30):
            buffer["x"][...] = i
            yield buffer
            buffer["x"][...] = -1

    with load(DYNAMIC, backend) as session:
        found = [int(outputs["y"][0, 0]) for outputs in session.stream(source(), in_flight=in_flight)]
    assert found == [i * i for i in range(30)]


@pytest.mark.parametrize("in_flight", [1, 2, 9])
def test_finished_outputs_come_before_the_error_of_the_source(backend, in_flight):
    def source() -> Iterator[dict[str, np.ndarray]]:
        yield from feeds(3)
        raise OSError("the camera was unplugged")

    with load(DYNAMIC, backend) as session:
        stream = session.stream(source(), in_flight=in_flight)
        assert [next(stream)["y"][0, 0] for _ in range(3)] == [0, 1, 4]
        with pytest.raises(OSError, match="unplugged"):
            next(stream)
        session.infer(feeds(1)[0])


def test_a_bad_input_is_refused_when_it_is_taken_and_raised_when_it_is_reached(backend):
    bad = [*feeds(3), {"x": np.ones((4, 3))}, *feeds(1)]
    with load(DYNAMIC, backend) as session:
        stream = session.stream(bad, in_flight=4)
        assert [next(stream)["y"][0, 0] for _ in range(3)] == [0, 1, 4]
        with pytest.raises(InputError, match="dtype"):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)


def test_a_stream_of_nothing_that_can_be_iterated_over(backend):
    with load(DYNAMIC, backend) as session:
        with pytest.raises(InputError, match="no stream"):
            session.stream(3)
        assert list(session.stream([])) == []


# Bound mode: its mappings, and outputs that have no buffer of a known size


def test_the_mappings_of_a_bound_mode_are_read_only(backend):
    with load(STATIC, backend) as session, session.bind() as bound:
        for mapping in (bound.inputs, bound.outputs):
            name = next(iter(mapping))
            with pytest.raises(TypeError):
                mapping[name] = np.zeros((2, 3), np.float32)
            with pytest.raises(TypeError):
                del mapping[name]


GROWING = (
    HEADER
    + "n (float[6] x) => (int64[1, M] y) <float[6] c = {1, 1, 1, 0, 0, 0}> { t = Add(x, c) y = NonZero(t) }"
)
SHRINKING = HEADER + "c (float[6] x, bool[6] c) => (float[M] y) { d = Not(c) y = Compress<axis = 0>(x, d) }"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("text", [GROWING, SHRINKING], ids=["growing", "shrinking"])
def test_an_output_whose_size_depends_on_the_data_is_never_an_old_one(backend, text, threads):
    with load(text, backend, options={"threads": threads}) as session, session.bind() as bound:
        names = [spec.name for spec in session.signature.inputs]
        size = bound.outputs["y"].shape
        for ones in ([], [0], [0, 2], [1, 2, 3, 4, 5], [], range(6)):
            feed = {"x": np.zeros(6, np.float32), "c": np.zeros(6, bool)}
            for at in ones:
                feed["x"][at], feed["c"][at] = 1, True
            feed = {name: feed[name] for name in names}
            expected = session.infer(feed)["y"]
            for name, array in feed.items():
                bound.inputs[name][...] = array
            if expected.shape == size:
                bound.run()
                np.testing.assert_array_equal(bound.outputs["y"], expected)
            else:
                with pytest.raises(InferenceError):
                    bound.run()


# Models that declare a wrong shape for an output


@pytest.mark.parametrize("size", [6, 60_000])
def test_a_declared_output_shape_that_is_wrong_does_not_decide(backend, size):
    text = (
        HEADER
        + f"c (float[{size}] x, bool[{size}] c) => (float[{size}] y) {{ y = Compress<axis = 0>(x, c) }}"
    )
    x = np.arange(size, dtype=np.float32)
    with load(text, backend) as session:
        for count in (2, size, 0, 3):  # also after a run in which the declared shape was right
            c = np.arange(size) < count
            np.testing.assert_array_equal(session.infer({"x": x, "c": c})["y"], x[:count])


def test_a_batch_that_a_model_declares_wrongly_is_bound(backend):
    text = (
        HEADER
        + "m (float[N, 3] x) => (float[1, 2] y) <float[3, 2] w = {1, 1, 1, 1, 1, 1}> { y = MatMul(x, w) }"
    )
    with load(text, backend) as session:
        x = np.arange(12, dtype=np.float32).reshape(4, 3)
        expected = np.repeat(x.sum(1, keepdims=True), 2, 1)
        np.testing.assert_array_equal(session.infer(x)["y"], expected)
        with session.bind({"x": (4, 3)}) as bound:
            bound.inputs["x"][...] = x
            bound.run()
            np.testing.assert_array_equal(bound.outputs["y"], expected)


# Inputs with a default


DEFAULTS = (
    HEADER
    + """d (float[N] x, float[1] scale = {2}, float[1] offset = {1}) => (float[N] y)
    { t = Mul(x, scale) y = Add(t, offset) }"""
)


def test_inputs_with_a_default_may_be_given(backend, tmp_path):
    ei.compile(onnx.parser.parse_model(DEFAULTS), backend).save(tmp_path / "d.edge")
    x, five = np.array([1, 2], np.float32), np.array([5], np.float32)
    with ei.load(tmp_path / "d.edge") as session:
        assert [spec.name for spec in session.signature.inputs] == ["x"]
        assert [spec.name for spec in session.signature.optional] == ["scale", "offset"]
        assert "optional scale float32 (1,)" in session.signature.describe()
        for _ in range(2):
            assert session.infer(x)["y"].tolist() == [3, 5]
            assert session.infer({"x": x, "scale": five})["y"].tolist() == [6, 11]
            assert session.infer({"offset": five, "x": x})["y"].tolist() == [7, 9]
            assert session.infer({"x": x, "scale": five, "offset": five})["y"].tolist() == [10, 15]
        streamed = session.stream([{"x": x, "scale": five}, {"x": x}])
        assert [outputs["y"].tolist() for outputs in streamed] == [[6, 11], [3, 5]]
        with pytest.raises(InputError, match="dtype"):
            session.infer({"x": x, "scale": np.array([5.0])})
        with pytest.raises(InputError, match="shape"):
            session.infer({"x": x, "scale": np.ones(2, np.float32)})
        with pytest.raises(InputError, match="unknown weight"):
            session.infer({"x": x, "weight": five})
        with session.bind({"x": (2,)}) as bound:
            assert set(bound.inputs) == {"x"}
            bound.inputs["x"][...] = x
            bound.run()
            assert bound.outputs["y"].tolist() == [3, 5]
        with session.bind({"x": (2,), "scale": (1,)}) as bound:
            assert set(bound.inputs) == {"x", "scale"}
            bound.inputs["x"][...] = x
            for scale in (5, 7):
                bound.inputs["scale"][...] = scale
                bound.run()
                assert bound.outputs["y"].tolist() == [scale + 1, 2 * scale + 1]


def test_before_ir_version_4_weights_among_the_inputs_say_nothing(backend):
    model = onnx.parser.parse_model(DEFAULTS.replace("ir_version: 8", "ir_version: 3"))
    with ei.load(ei.compile(model, backend)) as session:
        assert session.signature.optional == ()
        assert session.infer(np.array([1, 2], np.float32))["y"].tolist() == [3, 5]


def test_a_runner_that_takes_defaults_only_is_given_nothing_else():
    with fake_session() as session:
        spec = TensorSpec(name="scale", dtype=np.float32, shape=(1,))
        signature = attrs.evolve(session.signature, optional=[spec])
        manifest = attrs.evolve(session.manifest, signature=signature)
    with Session(FakeRunner(), manifest) as session:
        x = np.ones(3, np.float32)
        np.testing.assert_array_equal(session.infer(x)["y"], 2)
        with pytest.raises(InputError, match="unknown scale") as caught:
            session.infer({"x": x, "scale": np.ones(1, np.float32)})
        assert "default of 'scale'" in str(caught.value.hint)
        with pytest.raises(InputError):
            session.bind({"scale": (1,)})


# Names of dimensions that name nothing


@pytest.mark.parametrize("name", ["?", "None", "none", "-1", "unk", "unknown", "dynamic", "any", "*", ""])
def test_names_that_mean_any_size_need_not_agree(backend, name):
    value = lambda n, dims: onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, dims)  # noqa: E731
    nodes = [onnx.helper.make_node("GlobalAveragePool", ["x"], ["y"])]
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", [name, 3, name, name])], [value("y", [name, 3, 1, 1])]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with ei.load(ei.compile(model, backend)) as session:
        assert session.signature.inputs[0].shape == (None, 3, None, None)
        assert session.infer(np.ones((1, 3, 4, 6), np.float32))["y"].shape == (1, 3, 1, 1)
    assert TensorSpec(name="x", dtype=np.float32, shape=(name, -1, "N")).shape == (None, None, "N")


def test_other_names_must_agree(backend):
    text = HEADER + "a (float[unk__7, unk__7] x) => (float[unk__7, unk__7] y) { y = Mul(x, x) }"
    with load(text, backend) as session, pytest.raises(InputError, match="unk__7"):
        session.infer(np.ones((2, 3), np.float32))


# Strings


LABELS = """<ir_version: 8, opset_import: ["": 17]>
l (float[N, 3] x) => (string[N] label) <string[3] words = {"yes", "", "n\\xc3\\xb6"}>
{ i = ArgMax<axis = 1, keepdims = 0>(x) label = Gather(words, i) }"""


def test_string_outputs_are_str(backend):
    model = onnx.parser.parse_model(LABELS.replace('"n\\xc3\\xb6"', '"no"'))
    model.graph.initializer[0].string_data[2] = "nö".encode()
    with ei.load(ei.compile(model, backend)) as session:
        x = np.eye(3, dtype=np.float32)
        found = session.infer(x)["label"]
        assert found.dtype == object
        assert found.tolist() == ["yes", "", "nö"]
        assert {type(word) for word in found} == {str}
        (streamed,) = session.stream([x])
        assert streamed["label"].tolist() == ["yes", "", "nö"]
        with session.bind({"x": (2, 3)}) as bound:
            for order in ([0, 1], [2, 0]):
                bound.inputs["x"][...] = x[order]
                bound.run()
                assert bound.outputs["label"].tolist() == [["yes", "", "nö"][i] for i in order]


@pytest.mark.parametrize("made", [np.array, lambda words: np.array(words, object), list])
def test_string_inputs_pass_through_onnxruntime(made):
    text = (
        HEADER
        + "s (string[N] x) => (string[N] y, string[M] z) { y = Identity(x) z = Concat<axis = 0>(x, x) }"
    )
    words = ["edge", "ünïcode", "", "a" * 70]
    with load(text, "onnxruntime") as session:
        found = session.infer({"x": made(words)})
        assert found["y"].tolist() == words
        assert found["z"].tolist() == words * 2
        assert [a["y"].tolist() for a in session.stream([{"x": made(words)}] * 2)] == [words] * 2
        with session.bind({"x": (4,)}) as bound:
            bound.inputs["x"][...] = words
            bound.run()
            assert bound.outputs["z"].tolist() == words * 2
