"""Model: loading from every source, refusing what is broken, digest, saving."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.errors import (
    EdgeInferError,
    ExternalDataError,
    InvalidModelError,
    ModelError,
    ModelLoadError,
    UnsupportedModelError,
)
from edgeinfer.model.model import Model
from edgeinfer.testing.models import classifier_model, two_output_model

SHARED = (
    "cifar10_resnet20",
    "cifar10_resnet8_mlperf",
    "espcn_x3",
    "kws_dscnn",
    "minilm_l6_fp16w",
    "mnist_cntk",
    "mobilenet_v2_1.0_224",
    "nanodet_m_320",
    "silero_vad_16k",
    "squeezenet1_1",
    "vww_mobilenetv1_025_96",
)


@pytest.fixture
def model() -> Model:
    return classifier_model().model


@pytest.fixture
def path(model: Model, tmp_path: Path) -> Path:
    return model.save(tmp_path / "model.onnx")


def test_every_source_gives_the_same_model(model, path):
    sources = (path, str(path), path.read_bytes(), onnx.load(path), ir.load(path), model)
    assert {Model.load(source).digest for source in sources} == {model.digest}


def test_a_model_is_returned_as_it_is(model):
    assert Model.load(model) is model


def test_loading_does_not_take_over_the_callers_graph(path):
    graph = ir.load(path)
    graph.graph[0].name = ""
    loaded = Model.load(graph)
    assert graph.graph[0].name == ""
    graph.graph[1].name = "changed"
    assert loaded.ir.graph[1].name != "changed"


def test_every_node_has_a_unique_name(path):
    graph = ir.load(path)
    for node in graph.graph:
        node.name = "same" if node.op_type != "Conv" else ""
    names = [node.name for node in Model.load(graph).ir.graph]
    assert all(names)
    assert len(set(names)) == len(names)


def test_signature(model):
    (image,) = model.signature.inputs
    assert (image.name, image.dtype, image.shape) == ("image", np.dtype("float32"), ("N", 3, 8, 8))
    assert [spec.name for spec in model.signature.outputs] == ["logits"]
    assert model.signature.symbols == ("N",)
    assert not model.signature.is_static
    assert two_output_model().model.signature.is_static


def test_weights_are_no_inputs(models):
    # mnist_cntk is IR version 3, where every weight is listed among the graph's inputs, too
    assert [spec.name for spec in Model.load(models("mnist_cntk")).signature.inputs] == ["Input3"]


@pytest.mark.parametrize("name", SHARED)
def test_shared_models_load_and_keep_their_digest(models, name, tmp_path):
    loaded = Model.load(models(name))
    assert loaded.opset >= 7
    assert Model.load(loaded.to_bytes()).digest == loaded.digest
    copy = loaded.save(tmp_path / "copy.onnx", external_data=True)
    assert Model.load(copy).digest == loaded.digest


def test_digest_sees_weights_names_and_attributes(model):
    digests = {model.digest}
    for change in (_change_weight, _change_name, _change_attribute, _change_output_shape):
        copy = model.copy_ir()
        change(copy)
        digests.add(Model(copy).digest)
    assert len(digests) == 5


def test_digest_does_not_see_documentation_or_metadata(model):
    copy = model.copy_ir()
    copy.doc_string, copy.producer_name = "words", "somebody"
    copy.metadata_props["key"] = "value"
    assert Model(copy).digest == model.digest


def _change_weight(copy: ir.Model) -> None:
    value = copy.graph.initializers["b"]
    value.const_value = ir.tensor(value.const_value.numpy() + 1, name="b")


def _change_name(copy: ir.Model) -> None:
    copy.graph[0].name = "other"


def _change_attribute(copy: ir.Model) -> None:
    copy.graph[0].attributes["strides"] = ir.AttrInt64s("strides", [2, 1])


def _change_output_shape(copy: ir.Model) -> None:
    copy.graph.outputs[0].shape = ir.Shape(["M", 4])


def test_save_replaces_atomically_and_leaves_no_draft(model, path):
    before = path.read_bytes()
    model.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_save_into_nowhere_says_so(model, tmp_path):
    with pytest.raises(ModelError, match="cannot be written") as caught:
        model.save(tmp_path / "no folder" / "model.onnx")
    assert caught.value.hint is not None


def test_metadata_is_kept_with_history(model, tmp_path):
    tagged = model.with_metadata(owner_name="line 7")
    saved = tagged.save(tmp_path / "m.onnx")
    assert Model.load(saved).metadata["owner.name"] == "line 7"
    with pytest.raises(TypeError):
        tagged.metadata["x"] = "y"  # type: ignore[index]


class TestBroken:
    def test_missing_file(self, tmp_path):
        with pytest.raises(ModelLoadError, match="no such model file") as caught:
            Model.load(tmp_path / "gone.onnx")
        assert caught.value.where.endswith("gone.onnx")

    def test_empty_file(self, tmp_path):
        (tmp_path / "empty.onnx").touch()
        with pytest.raises(ModelLoadError, match="empty"):
            Model.load(tmp_path / "empty.onnx")

    def test_folder(self, tmp_path):
        with pytest.raises(ModelLoadError, match="cannot be read"):
            Model.load(tmp_path)

    def test_not_onnx(self, tmp_path):
        page = tmp_path / "page.onnx"
        page.write_text("<html>404</html>")
        with pytest.raises(ModelLoadError, match="not an ONNX model"):
            Model.load(page)

    def test_something_else(self):
        with pytest.raises(ModelLoadError, match="not a model") as caught:
            Model.load(3.14)  # type: ignore[arg-type]
        assert caught.value.found == "float"

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, model, part):
        data = model.to_bytes()
        with pytest.raises(ModelError):
            Model.load(data[: int(len(data) * part)])

    def test_old_opset(self, model):
        proto = model.to_proto()
        proto.opset_import[0].version = 6
        with pytest.raises(UnsupportedModelError, match="opset") as caught:
            Model.load(proto)
        assert caught.value.found == "opset 6"

    def test_new_opset(self, model):
        proto = model.to_proto()
        proto.opset_import[0].version = 999
        with pytest.raises(UnsupportedModelError, match="opset"):
            Model.load(proto)

    def test_unknown_operator_is_named(self, model):
        proto = model.to_proto()
        proto.graph.node[1].op_type = "NoSuchOperator"
        with pytest.raises(InvalidModelError, match="NoSuchOperator"):
            Model.load(proto)

    def test_impossible_shape(self, model):
        proto = model.to_proto()
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 62
        with pytest.raises(InvalidModelError, match="shape is impossible") as caught:
            Model.load(proto)
        assert "image" in caught.value.where

    def test_a_dimension_of_minus_one_is_any_size(self, model):
        proto = model.to_proto()
        batch = [value.type.tensor_type.shape.dim[0] for value in (*proto.graph.input, *proto.graph.output)]
        for dim in batch:
            dim.dim_value = -1
        loaded = Model.load(proto)
        assert loaded.signature.inputs[0].shape == (None, *model.signature.inputs[0].shape[1:])
        assert loaded.signature.outputs[0].shape[0] is None

    def test_axes_called_question_mark_may_differ(self, model):
        proto = model.to_proto()
        for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
            dim.dim_param = "?"
        assert Model.load(proto).signature.inputs[0].shape[2:] == (None, None)

    def test_weight_data_shorter_than_its_shape(self, model):
        proto = model.to_proto()
        weight = proto.graph.initializer[0]
        weight.raw_data = weight.raw_data[:-4]
        with pytest.raises(ModelError):
            Model.load(proto)

    @settings(max_examples=60, deadline=None)
    @given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def test_a_flipped_bit_gives_a_model_or_one_of_our_errors(self, position, bit):
        data = bytearray(classifier_model().model.to_bytes())
        data[int(position * len(data))] ^= 1 << bit
        try:
            loaded = Model.load(bytes(data))
        except EdgeInferError:
            return
        assert loaded.digest  # what loads can be worked with


class TestExternalData:
    @pytest.fixture
    def folder(self, model, tmp_path) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        graph = model.copy_ir()
        ir.save(graph, folder / "m.onnx", external_data="m.data", size_threshold_bytes=0)
        return folder

    def _relocate(self, folder: Path, location: str) -> Path:
        proto = onnx.load(folder / "m.onnx", load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        return folder / "m.onnx"

    def test_is_read(self, folder, model):
        assert Model.load(folder / "m.onnx").digest == model.digest

    def test_of_bytes_cannot_be_found(self, folder):
        with pytest.raises(ExternalDataError, match="not loaded from a file"):
            Model.load((folder / "m.onnx").read_bytes())

    @pytest.mark.parametrize("location", ["../m.data", "/etc/hostname", "a/../../m.data", "", "."])
    def test_outside_the_folder(self, folder, location):
        (folder.parent / "m.data").write_bytes((folder / "m.data").read_bytes())
        with pytest.raises(ExternalDataError):
            Model.load(self._relocate(folder, location))

    def test_symbolic_link(self, folder):
        (folder / "m.data").rename(folder.parent / "elsewhere")
        (folder / "m.data").symlink_to(folder.parent / "elsewhere")
        with pytest.raises(ExternalDataError, match="symbolic link"):
            Model.load(folder / "m.onnx")

    def test_a_folder_that_becomes_a_link_behind_the_check(self, folder, monkeypatch):
        (folder / "real").mkdir()
        (folder / "m.data").rename(folder / "real" / "m.data")
        (folder / "sub").symlink_to("real")
        self._relocate(folder, "sub/m.data")
        monkeypatch.setattr(Path, "is_symlink", lambda _: False)
        with pytest.raises(ExternalDataError, match="cannot be opened"):
            Model.load(folder / "m.onnx")

    def test_symbolic_link_to_a_folder(self, folder):
        (folder.parent / "other").mkdir()
        (folder / "m.data").rename(folder.parent / "other" / "m.data")
        (folder / "sub").symlink_to(folder.parent / "other")
        with pytest.raises(ExternalDataError, match="symbolic link"):
            Model.load(self._relocate(folder, "sub/m.data"))

    def test_hard_link(self, folder):
        os.link(folder / "m.data", folder.parent / "second name")
        with pytest.raises(ExternalDataError, match="hard-linked"):
            Model.load(folder / "m.onnx")

    def test_pipe(self, folder):
        (folder / "m.data").unlink()
        os.mkfifo(folder / "m.data")
        with pytest.raises(ExternalDataError, match="regular file"):
            Model.load(folder / "m.onnx")

    def test_missing(self, folder):
        (folder / "m.data").unlink()
        with pytest.raises(ExternalDataError, match="cannot be opened") as caught:
            Model.load(folder / "m.onnx")
        assert "m.data" in caught.value.where

    def test_truncated(self, folder):
        data = (folder / "m.data").read_bytes()
        (folder / "m.data").write_bytes(data[:-1])
        with pytest.raises(ExternalDataError, match="does not hold the tensor"):
            Model.load(folder / "m.onnx")

    def test_two_names_of_one_folder_are_fine(self, folder, model):
        (folder / "sub").mkdir()
        (folder / "m.data").rename(folder / "sub" / "m.data")
        assert Model.load(self._relocate(folder, "sub/../sub/m.data")).digest == model.digest


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path):
    rows = (2 << 30) // (4 * 4096) + 64
    weight = np.zeros((rows, 4096), np.float32)
    weight[-1, -1] = 3
    x = ir.val("x", ir.DataType.INT64, (1,))
    value = ir.val("table", ir.DataType.FLOAT, weight.shape, const_value=ir.tensor(weight, name="table"))
    node = ir.node("Gather", [value, x])
    node.outputs[0].name = "y"
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape((1, 4096))
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 17}, name="big"
    )
    model = Model.load(ir.Model(graph, ir_version=8))
    with pytest.raises(UnsupportedModelError, match="too large"):
        model.to_bytes()
    saved = model.save(tmp_path / "big.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    again = Model.load(saved)
    assert again.nbytes == weight.nbytes > 1 << 31
    assert again.ir.graph.initializers["table"].const_value.numpy()[-1, -1] == 3
