"""A recipe is replayed, not computed again, and gives the same model bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.errors import RecipeError
from edgeinfer.transforms import (
    CorrectBias,
    FuseBatchNorm,
    PruneChannels,
    QuantizeStatic,
    QuantizeWeights,
    RoundWeights,
    Simplify,
    ToFloat16,
)
from edgeinfer.tuning.recipe import Recipe
from tests.quantization.qdq_models import Builder


@pytest.fixture(scope="module")
def model():
    net = Builder(1, 8, 8, 8)
    x = net.node("Relu", net.conv(net.input, "first", 8, 64), name="relu1")
    x = net.node("Relu", net.conv(x, "second", 64, 64), name="relu2")
    return net.model(net.conv(x, "third", 64, 8), 1, 8, 8, 8)


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 8, 8, 8)).astype(np.float32)} for _ in range(8)]


@pytest.fixture(scope="module")
def recorded(model, feeds):
    steps = (
        Simplify(),
        FuseBatchNorm(),
        PruneChannels(keep_macs=0.6, calibration=feeds, multiple=8, measure=4, progress=False),
        QuantizeStatic(calibration=feeds),
        RoundWeights(calibration=feeds),
        CorrectBias(calibration=feeds),
    )
    return Recipe.record(model, steps)


def test_a_saved_recipe_gives_the_same_model_bit_for_bit(model, recorded, tmp_path):
    made, recipe = recorded
    model.save(tmp_path / "model.onnx")
    recipe.save(tmp_path / "a.recipe")
    replayed = Recipe.load(tmp_path / "a.recipe").apply(tmp_path / "model.onnx")
    assert replayed.digest == made.digest == recipe.digest
    assert dict(replayed.metadata) == dict(made.metadata)
    feed = {"x": np.ones((1, 8, 8, 8), np.float32)}
    outputs = []
    for each in (made, replayed):
        with ei.load(ei.compile(each, "onnxruntime")) as session:
            outputs.append(next(iter(session.infer(feed).values())))
    assert outputs[0].tobytes() == outputs[1].tobytes()


def test_replaying_needs_no_transform(recorded, model, monkeypatch):
    made, recipe = recorded
    for transform in (PruneChannels, QuantizeStatic, RoundWeights, CorrectBias):
        monkeypatch.setattr(transform, "rewrite", _never)
    assert recipe.apply(model).digest == made.digest


def test_decisions_are_data(recorded, feeds):
    _, recipe = recorded
    steps = {step.name: step for step in recipe.steps}
    assert steps["PruneChannels"].decisions["channels"]
    ranges = steps["QuantizeStatic"].decisions["ranges"]
    assert ranges["x"][0] == pytest.approx(min(f["x"].min() for f in feeds), rel=0.5)
    assert steps["PruneChannels"].settings["keep_macs"] == 0.6
    text = json.dumps([step.settings for step in recipe.steps])
    assert "array" in text or "list of" in text  # of the samples only the kind is kept
    assert len({step.digest for step in recipe.steps}) == len(recipe.steps)


def test_unchanged_weights_are_not_stored_and_channels_are_indices(model):
    _, recipe = Recipe.record(model, (PruneChannels(keep_macs=0.6, multiple=8, progress=False),))
    entries = {entry["name"]: entry for entry in recipe.steps[0].delta["initializer"]}
    assert "take" in entries["first_w"]
    axis, indices = entries["first_w"]["take"]
    assert axis == 0
    assert indices == sorted(indices)
    assert "same" in entries["third_b"]
    stored = sum(map(len, recipe.tensors.values()))
    assert stored < model.nbytes


@pytest.mark.parametrize("step", [ToFloat16(), QuantizeWeights(bits=8)], ids=lambda s: type(s).__name__)
def test_other_transforms(model, step):
    made, recipe = Recipe.record(model, (step,))
    assert made.digest != model.digest
    assert recipe.apply(model).digest == made.digest


def test_what_does_nothing_is_no_step(model):
    made, recipe = Recipe.record(model, (FuseBatchNorm(),))
    assert recipe.steps == ()
    assert recipe.apply(model).digest == made.digest == model.digest


def test_a_recipe_for_another_model_is_refused(recorded):
    net = Builder(1, 8, 8, 8, seed=1)
    other = net.model(net.conv(net.input, "first", 8, 8), 1, 8, 8, 8)
    with pytest.raises(RecipeError, match="for another model"):
        recorded[1].apply(other)
    with pytest.raises(RecipeError, match="does not start where"):
        recorded[1].then(recorded[1])


@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_bit_in_the_weights_is_found(recorded, tmp_path, place):
    folder = recorded[1].save(tmp_path / "a.recipe")
    data = bytearray((folder / "tensors.bin").read_bytes())
    data[place] ^= 1
    (folder / "tensors.bin").write_bytes(data)
    with pytest.raises(RecipeError, match="damaged"):
        Recipe.load(folder)


def test_a_changed_decision_is_found(recorded, model, tmp_path):
    folder = recorded[1].save(tmp_path / "a.recipe")
    header = json.loads((folder / "recipe.json").read_text())
    step = next(s for s in header["steps"] if s["name"] == "PruneChannels")
    entry = next(e for e in step["delta"]["initializer"] if "take" in e)
    entry["take"][1][0], entry["take"][1][1] = entry["take"][1][1], entry["take"][1][0]
    (folder / "recipe.json").write_text(json.dumps(header))
    with pytest.raises(RecipeError, match="another model than"):
        Recipe.load(folder).apply(model)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}'])
def test_what_is_no_recipe(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    (tmp_path / "tensors.bin").write_bytes(b"")
    with pytest.raises(RecipeError):
        Recipe.load(tmp_path)
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "nowhere")


def _never(*_):
    raise AssertionError("a transform was applied")
