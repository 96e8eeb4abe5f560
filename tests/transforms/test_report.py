"""Reports are read from the top: an overview, groups with counts, and every place on request."""

from __future__ import annotations

import json

import numpy as np

from edgeinfer.model.report_table import group_entries
from edgeinfer.transforms import Applied, Pipeline, Simplify, Skipped, ToFloat16, TransformReport


def report(**parts: object) -> TransformReport:
    return TransformReport(
        name="Simplify", modified=bool(parts.get("applied")), digest_before="a", digest_after="b",
        seconds=0.25, **parts,
    )  # fmt: skip


LIFTED = [Applied(f"/Constant_{i}", "lifted Constant to an initializer") for i in range(342)]
FUSED = [Applied(f"bn{i}", f"fused BatchNormalization into Conv conv{i}") for i in range(20)]
SKIPPED = [Skipped(f"cast{i}", f"its weight w{i}.bias has {i + 1} numbers so small") for i in range(7)]


def test_entries_that_say_the_same_are_one_row() -> None:
    table = report(applied=[*FUSED, *LIFTED], skipped=SKIPPED, notes=("opset 13",)).table()
    assert table.columns == ("transform", "", "places", "what", "nodes")
    assert [row[2] for row in table.rows] == ["342", "20", "7", ""]
    assert [row[3] for row in table.rows] == [
        "lifted Constant to an initializer",
        "fused BatchNormalization into Conv …",
        "its weight … has … numbers so small",
        "opset 13",
    ]
    assert table.rows[0][4] == "/Constant_0, /Constant_1, /Constant_2 and 339 more"
    assert "details=True" in table.footer


def test_every_place_on_request() -> None:
    table = report(applied=[*FUSED, *LIFTED], skipped=SKIPPED).table(details=True)
    assert len(table.rows) == 369
    assert table.rows[0][3] == "fused BatchNormalization into Conv conv0"
    assert not table.footer


def test_the_overview_comes_first() -> None:
    made = report(applied=FUSED, skipped=SKIPPED, notes=("one",))
    assert made.summary() == ("Simplify: 20 places changed, 7 places left alone, 1 note (0.25 s)",)
    assert str(made).splitlines()[0] == made.summary()[0]
    assert made.table().title == made.summary()[0]
    assert report().summary() == ("Simplify: nothing changed (0.25 s)",)


def test_a_pipeline_has_a_line_for_each_step(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 2] x) => (float[N, 2] y) { a = Identity (x)  b = Relu (a)  y = Identity (b) }""")
    made = Pipeline((Simplify(), ToFloat16())).apply(model).report
    first, *steps = made.summary()
    assert first.startswith("Pipeline: 4 places changed")
    assert [line.split(":")[0].strip() for line in steps] == ["Simplify", "ToFloat16"]
    assert {row[0] for row in made.table().rows} == {"Simplify", "ToFloat16"}
    assert [step["name"] for step in made.to_dict()["steps"]] == ["Simplify", "ToFloat16"]


def test_text_is_short_whatever_there_is() -> None:
    many = [Applied(f"n{i}", "x" * i) for i in range(500)]
    lines = str(report(applied=[*many, *LIFTED], skipped=SKIPPED)).splitlines()
    assert len(lines) <= 15
    assert lines[1].startswith("  applied 342 x lifted Constant to an initializer: /Constant_0, ")
    assert lines[1].endswith(" and 339 more")
    assert "more lines in table()" in lines[-1]


def test_a_dict_is_json() -> None:
    made = report(applied=FUSED, data={"zeros": {"w": np.int64(3)}, "weights": np.ones(4)})
    plain = json.loads(json.dumps(made.to_dict()))
    assert plain["applied"][0] == {"node": "bn0", "what": "fused BatchNormalization into Conv conv0"}
    assert plain["data"] == {"zeros": {"w": 3}, "weights": "<float64 array (4,)>"}
    assert plain["modified"] is True


def test_groups_keep_what_their_texts_have_in_common() -> None:
    texts = ["Conv conv1 computes in float16", "Conv conv2 computes in float16", "Relu computes in float16"]
    groups = group_entries(("", text) for text in texts)
    assert [(group.number, group.text) for group in groups] == [
        (2, "Conv … computes in float16"),
        (1, "Relu computes in float16"),
    ]


def test_a_notebook_shows_the_same() -> None:
    html = report(applied=[*FUSED, *LIFTED])._repr_html_()
    assert ">342<" in html
    assert "lifted Constant" in html
