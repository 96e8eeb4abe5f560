"""The images of the demonstration, its model, and the model that is too slow."""

from __future__ import annotations

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.demo.surfaces import CLASSES, draw_surfaces, inspection_model_path
from edgeinfer.demo.turned_views import with_turned_views


def test_an_image_depends_on_the_seed_and_its_number_alone():
    many = draw_surfaces(12, seed=5)
    part = draw_surfaces(4, seed=5, first=6)
    np.testing.assert_array_equal(part.images, many.images[6:10])
    np.testing.assert_array_equal(part.labels, many.labels[6:10])
    assert sorted(set(many.labels)) == list(range(len(CLASSES)))
    assert many.images.shape == (12, 1, 64, 64)
    assert many.images.dtype == np.float32
    assert 0 <= many.images.min() <= many.images.max() <= 1
    assert not np.array_equal(draw_surfaces(4, seed=6).images, many.images[:4])
    assert [len(feed["image"]) for feed in many.feeds(5)] == [5, 5, 2]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_model_knows_the_defects(backend):
    pytest.importorskip(backend)
    held_out = draw_surfaces(200, seed=2)
    with ei.load(ei.compile(inspection_model_path(), backend)) as session:
        logits = session.infer({"image": held_out.images})["logits"]
    assert held_out.accuracy(logits) > 0.85


def test_turned_views_are_averaged():
    model = ei.Model.load(inspection_model_path())
    x = draw_surfaces(6, seed=2).images
    turned = (x, x[:, :, ::-1], x[..., ::-1], x[:, :, ::-1, ::-1])
    with ei.load(ei.compile(model)) as plain, ei.load(ei.compile(with_turned_views(model))) as averaging:
        expected = np.mean([plain.infer({"image": view.copy()})["logits"] for view in turned], axis=0)
        found = averaging.infer({"image": x})["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_turned_views_can_be_turned_again():
    model = ei.Model.load(inspection_model_path())
    x = draw_surfaces(2, seed=2).images
    once = with_turned_views(model)
    with ei.load(ei.compile(once)) as four, ei.load(ei.compile(with_turned_views(once, prefix="2."))) as more:
        expected = four.infer({"image": x})["logits"]  # the mirror images of mirror images are the same four
        np.testing.assert_allclose(more.infer({"image": x})["logits"], expected, rtol=1e-5, atol=1e-5)
