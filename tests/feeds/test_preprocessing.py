"""`Preprocessing`: from an image to an input, and back and forth as JSON."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import FeedsError
from edgeinfer.feeds import preprocessing as module
from edgeinfer.feeds.feeds import Feeds
from edgeinfer.feeds.preprocessing import COLORS, FILTERS, LAYOUTS, Preprocessing

PLAIN = {"scale": 1, "dtype": "uint8"}
IMAGES = Signature(
    inputs=[TensorSpec(name="image", dtype=np.float32, shape=("N", 3, 4, 6))],
    outputs=[],
)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_the_formula_color_layout_and_dtype():
    pixels = picture(4, 6)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = Preprocessing(size=(4, 6), mean=mean, std=std).apply(pixels)
    assert (found.shape, found.dtype) == ((1, 3, 4, 6), np.float32)
    expected = (pixels / 255 - mean) / std
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-6)
    bgr = Preprocessing(size=(4, 6), color="BGR", layout="NHWC", mean=mean, std=std).apply(pixels)
    assert bgr.shape == (1, 4, 6, 3)
    np.testing.assert_allclose(bgr[0], (pixels[:, :, ::-1] / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    raw = Preprocessing(size=(4, 6), layout="NHWC", **PLAIN).apply(Image.fromarray(pixels))
    np.testing.assert_array_equal(raw[0], pixels)
    half = Preprocessing(size=(4, 6), dtype="float16").apply(pixels)
    assert half.dtype == np.float16
    assert half.flags.c_contiguous


def test_grey():
    pixels = picture(4, 6)[:, :, 0]
    grey = Preprocessing(size=(4, 6), color="L", **PLAIN).apply(pixels)
    np.testing.assert_array_equal(grey, pixels[None, None])
    colored = Preprocessing(size=(4, 6), layout="NHWC", **PLAIN).apply(pixels)
    np.testing.assert_array_equal(colored[0], np.repeat(pixels[:, :, None], 3, axis=2))


def test_resize_stretches():
    found = Preprocessing(size=(2, 3), layout="NHWC", resample="nearest", **PLAIN).apply(picture(4, 6))
    np.testing.assert_array_equal(found[0], picture(4, 6)[1::2, 1::2])


@pytest.mark.parametrize(
    ("shape", "size", "shorter", "top", "left"),
    [((10, 14), 10, None, 0, 2), ((14, 10), 10, None, 2, 0), ((12, 20), (6, 8), 12, 3, 6)],
)
def test_crop_takes_the_middle(shape, size, shorter, top, left):
    pixels = picture(*shape)
    made = Preprocessing(size=size, mode="crop", shorter=shorter, layout="NHWC", **PLAIN)
    height, width = made.size
    np.testing.assert_array_equal(made.apply(pixels)[0], pixels[top : top + height, left : left + width])


def test_crop_scales_the_shorter_side_first():
    pixels = picture(30, 20)
    made = Preprocessing(size=8, mode="crop", shorter=10, layout="NHWC", **PLAIN)
    scaled = np.asarray(Image.fromarray(pixels).resize((10, 15), Image.Resampling.BILINEAR))
    top = round((15 - 8) / 2)
    np.testing.assert_array_equal(made.apply(pixels)[0], scaled[top : top + 8, 1:9])


@pytest.mark.parametrize("color", COLORS)
def test_letterbox_fills_around(color):
    made = Preprocessing(size=(8, 8), mode="letterbox", fill=7, color=color, layout="NHWC", **PLAIN)
    found = made.apply(np.full((4, 8, 3), 200, np.uint8))[0]
    assert (found[2:6] == 200).all()
    assert (found[:2] == 7).all()
    assert (found[6:] == 7).all()


SIZES = st.one_of(st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40)))
NUMBERS = st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3)


@st.composite
def preprocessings(draw):
    color = draw(st.sampled_from(COLORS))
    channels = 1 if color == "L" else 3
    count = draw(st.sampled_from([1, channels]))
    size = draw(SIZES)
    mode = draw(st.sampled_from(module.MODES))
    longest = size if isinstance(size, int) else max(size)
    return Preprocessing(
        size=size,
        mode=mode,
        shorter=draw(st.one_of(st.none(), st.integers(longest, 60))) if mode == "crop" else None,
        fill=draw(st.integers(0, 255)),
        color=color,
        layout=draw(st.sampled_from(LAYOUTS)),
        dtype=draw(st.sampled_from(["float32", "float16"])),
        scale=draw(NUMBERS),
        mean=draw(st.lists(NUMBERS, min_size=count, max_size=count)),
        std=draw(st.lists(NUMBERS, min_size=count, max_size=count)),
        resample=draw(st.sampled_from(FILTERS)),
    )


@settings(deadline=None)
@given(preprocessings(), st.integers(1, 50), st.integers(1, 50))
def test_any_image_becomes_an_input_of_the_size_and_json_changes_nothing(made, height, width):
    again = Preprocessing.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    pixels = picture(height, width)
    largest = (255 * abs(made.scale) + max(map(abs, made.mean))) / min(map(abs, made.std))
    if largest > np.finfo(made.dtype).max:
        return  # see the next test
    found = made.apply(pixels)
    assert found.shape == (
        (1, made.channels, *made.size) if made.layout == "NCHW" else (1, *made.size, made.channels)
    )
    assert str(found.dtype) == made.dtype
    np.testing.assert_array_equal(again.apply(pixels), found)


def test_values_that_a_dtype_does_not_hold_are_refused():
    made = Preprocessing(size=2, dtype="float16", scale=300)
    assert made.apply(np.full((2, 2, 3), 200, np.uint8)).max() == 60000
    with pytest.raises(FeedsError, match="too large for float16"):
        made.apply(np.full((2, 2, 3), 250, np.uint8))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, "size"),
        ({"size": 0}, "size of an image"),
        ({"size": (3, 4, 5)}, "size of an image"),
        ({"size": "224"}, "size of an image"),
        ({"size": (224.0, 224.0)}, "size of an image"),
        ({"size": True}, "size of an image"),
        ({"size": 8, "mode": "squash"}, "no mode"),
        ({"size": 8, "color": "RGBA"}, "no color"),
        ({"size": 8, "layout": "CHW"}, "no layout"),
        ({"size": 8, "resample": "cubic"}, "no resample"),
        ({"size": 8, "dtype": "text"}, "dtype"),
        ({"size": 8, "dtype": "bool"}, "dtype"),
        ({"size": 8, "mean": (1, 2)}, "channels"),
        ({"size": 8, "mean": ("a",)}, "finite"),
        ({"size": 8, "mean": float("nan")}, "finite"),
        ({"size": 8, "std": (1, 0, 1)}, "divided"),
        ({"size": 8, "scale": float("inf")}, "finite"),
        ({"size": 8, "scale": None}, "finite"),
        ({"size": 8, "fill": 300}, "fill"),
        ({"size": 8, "shorter": 9}, "crop"),
        ({"size": (8, 12), "shorter": 9, "mode": "crop"}, "at least 12"),
        ({"size": 8, "dtype": "uint8"}, "as they are"),
        ({"size": 8, "nonsense": 1}, "fields"),
    ],
)
def test_what_it_does_not_take_is_refused(fields, what):
    with pytest.raises(FeedsError) as caught:
        Preprocessing.from_dict(fields)
    assert what in str(caught.value)
    with pytest.raises(FeedsError):
        Preprocessing.from_dict([fields])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        Image.fromarray(np.zeros((4, 4), np.uint16)),
        Image.fromarray(np.zeros((4, 4), np.float32)),
        "image.png",
        None,
    ],
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(FeedsError, match="image"):
        Preprocessing(size=4).apply(image)


def test_a_folder_of_images_with_folders_of_classes_in_it(tmp_path):
    for name in ("b/2.png", "a/1.jpg", "a/0.BMP", "._hidden.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("txt") or name.startswith("."):
            path.write_bytes(b"no image")
        else:
            Image.fromarray(picture(9, 7, seed=len(name))).save(path)
    made = Preprocessing(size=(4, 6))
    feeds = Feeds.of(tmp_path, IMAGES, made)
    assert len(feeds) == 3
    assert feeds.what == f"3 images in {tmp_path}"
    for _ in range(2):
        for feed, name in zip(feeds, ("a/0.BMP", "a/1.jpg", "b/2.png"), strict=True):
            with Image.open(tmp_path / name) as image:
                np.testing.assert_array_equal(feed["image"], made.apply(image))


def test_images_may_come_as_one_file_a_list_of_paths_or_in_memory(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture(9, 7)).save(path)
    made = Preprocessing(size=(4, 6))
    expected = made.apply(picture(9, 7))
    for source in (
        path,
        [path],
        [Image.open(path)],
        [picture(9, 7)],
        [(picture(9, 7), "label")],
        lambda: iter([picture(9, 7)]),
    ):
        (feed,) = Feeds.of(source, IMAGES, made)
        np.testing.assert_array_equal(feed["image"], expected)


def test_images_without_a_preprocessing_and_the_reverse_are_refused(tmp_path):
    Image.fromarray(picture(4, 4)).save(tmp_path / "a.png")
    with pytest.raises(FeedsError, match="how an image becomes an input"):
        Feeds.of(tmp_path, IMAGES)
    with pytest.raises(FeedsError, match="how an image becomes an input") as caught:
        list(Feeds.of([tmp_path / "a.png"], IMAGES))
    assert "a.png" in str(caught.value.where)
    np.save(tmp_path / "b.npy", np.zeros((1, 3, 4, 6), np.float32))
    with pytest.raises(FeedsError, match="for images"):
        list(Feeds.of(tmp_path / "b.npy", IMAGES, Preprocessing(size=(4, 6))))
    (tmp_path / "a.png").unlink()
    with pytest.raises(FeedsError, match="no images"):
        Feeds.of(tmp_path, IMAGES, Preprocessing(size=(4, 6)))
    with pytest.raises(FeedsError, match="made already"):
        Feeds.of(Feeds.of(tmp_path, IMAGES), IMAGES, Preprocessing(size=(4, 6)))


def test_a_damaged_image_is_named(tmp_path):
    Image.fromarray(picture(64, 64)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for content in (data[: len(data) // 2], b"", b"text"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(FeedsError, match="cannot be read") as caught:
            list(Feeds.of(tmp_path, IMAGES, Preprocessing(size=(4, 6))))
        assert "a.png" in str(caught.value.where)
        assert caught.value.facts["sample"] == 0


def test_an_image_of_the_wrong_size_for_the_model_is_told(tmp_path):
    Image.fromarray(picture(9, 7)).save(tmp_path / "a.png")
    with pytest.raises(FeedsError, match="shape"):
        list(Feeds.of(tmp_path, IMAGES, Preprocessing(size=(5, 5))))


def test_pillow_is_asked_for_only_where_there_are_images(tmp_path, monkeypatch):
    real = importlib.import_module

    def refuse(name, *arguments):
        if name.startswith("PIL"):
            raise ImportError("no PIL")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", refuse)
    made = Preprocessing(size=(4, 6))
    assert Preprocessing.from_dict(made.to_dict()) == made
    with pytest.raises(FeedsError, match="Pillow") as caught:
        made.apply(picture(4, 6))
    assert 'pip install "edgeinfer[images]"' in str(caught.value.hint)
