"""The values of a release: encoding, choosing a variant, ties."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.budget import Budget
from edgeinfer.fleet.device.documents import canonical_json
from edgeinfer.fleet.device.predicate import DeviceFacts, Predicate, satisfies
from edgeinfer.fleet.device.release import MAX_RELEASE_BYTES, Blob, Delta, Release, Variant
from edgeinfer.fleet.errors import DocumentError, NoVariantError, TiedVariantsError

A, B = "a" * 64, "b" * 64


def blob(path: str = "model.onnx", digest: str = A) -> Blob:
    return Blob(path=path, size=5, digest=digest)


def variant(name: str = "ort", **fields) -> Variant:
    return Variant(**{"name": name, "artifact_digest": B, "blobs": (blob(),), **fields})


def release(*variants: Variant, **fields) -> Release:
    values = {"model": "defects", "version": "2", "interface": "defects/2", "created_at": 7, **fields}
    return Release(variants=variants or (variant(),), **values)


def test_a_release_survives_its_bytes():
    made = release(
        variant(
            needs=Predicate(arch="x86_64", backend="onnxruntime", runtime=">=1.23,<2", memory_bytes=4),
            budget=Budget(latency_p99_ms=3, peak_bytes="120 MiB"),
            golden="golden/ort.npz",
            measured={"latency_p50_ms": 1.5},
        ),
        bundle=(blob("labels.txt", B), blob("golden/ort.npz")),
        deltas=(Delta(of=A, base=B, size=2, digest=B, format="sub8+zstd"),),
        requires="1",
    )
    read = Release.from_bytes(made.to_bytes())
    assert read == made
    assert read.digest == made.digest


def test_fields_of_a_later_version_keep_the_digest_unless_the_release_is_changed():
    fields = json.loads(release().to_bytes())
    fields["later"] = 1
    fields["variants"][0]["later"] = {"x": []}
    data = canonical_json(fields)
    read = Release.from_bytes(data)
    assert read.to_bytes() == data
    changed = attrs.evolve(read, version="3")
    assert json.loads(changed.to_bytes())["version"] == "3"


def test_a_critical_field_of_a_later_version_is_refused():
    data = canonical_json(json.loads(release().to_bytes()) | {"later": 1, "critical": ["later"]})
    with pytest.raises(DocumentError, match="must be understood") as caught:
        Release.from_bytes(data)
    assert caught.value.facts["unknown"] == ("later",)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"model": "../x"},
        {"variants": []},
        {"variants": 5},
        {"created_at": True},
        {"critical": "x"},
        {"bundle": [{"path": "../../etc/passwd", "size": 1, "digest": A}]},
        {"bundle": [{"path": "/etc/passwd", "size": 1, "digest": A}]},
        {"bundle": [{"path": "x", "size": -1, "digest": A}]},
        {"bundle": [{"path": "x", "size": 1, "digest": A.upper()}]},
    ],
)
def test_what_is_no_release_is_refused(change):
    data = canonical_json(json.loads(release().to_bytes()) | change)
    with pytest.raises(DocumentError):
        Release.from_bytes(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b"[" * 100_000, b'{"a":NaN}', b'{"a":"\\ud800"}', b"{}" + b" " * MAX_RELEASE_BYTES],
)
def test_any_bytes_are_refused_with_our_error(data):
    with pytest.raises(DocumentError):
        Release.from_bytes(data)


def test_another_form_of_the_same_json_is_refused():
    data = json.dumps(json.loads(release().to_bytes()), indent=1).encode()
    with pytest.raises(DocumentError, match="canonical"):
        Release.from_bytes(data)
    doubled = release().to_bytes().replace(b'"model":', b'"model":"x","model":')
    with pytest.raises(DocumentError, match="canonical"):
        Release.from_bytes(doubled)


FACTS = DeviceFacts(
    arch="x86_64", backends={"a": "1.5", "b": "2026.4.1"}, memory_bytes=8, device_class="edge"
)


def test_the_most_specific_that_fits_wins():
    made = release(
        variant("any"),
        variant("here", needs=Predicate(arch="x86_64")),
        variant("there", needs=Predicate(arch="aarch64", backend="a", device_class="edge")),
        variant("small", needs=Predicate(arch="x86_64", memory_bytes=4)),
        variant("large", needs=Predicate(arch="x86_64", memory_bytes=8)),
        variant("huge", needs=Predicate(arch="x86_64", memory_bytes=9)),
    )
    assert made.choose(FACTS).name == "large"
    assert not list(made.ties())


def test_no_variant_says_why_for_each():
    made = release(
        variant("gpu", needs=Predicate(accelerator="gpu")),
        variant("old", needs=Predicate(backend="a", runtime="<1.5")),
        variant("large", needs=Predicate(memory_bytes=9)),
    )
    with pytest.raises(NoVariantError) as caught:
        made.choose(FACTS)
    assert caught.value.facts["refusals"] == {
        "gpu": "no gpu",
        "old": "a 1.5, not <1.5",
        "large": "8 B memory, less than 9 B",
    }


def test_unknown_memory_does_not_fit():
    assert Predicate(memory_bytes=1).refusal(DeviceFacts()) == "unknown memory, less than 1 B"


def test_ties_are_found_and_a_rank_ends_them():
    a, b = variant("a", needs=Predicate(backend="a")), variant("b", needs=Predicate(backend="b"))
    tied = release(a, b)
    assert [(x.name, y.name) for x, y in tied.ties()] == [("a", "b")]
    with pytest.raises(TiedVariantsError, match="equally well"):
        tied.choose(FACTS)
    ranked = release(a, attrs.evolve(b, rank=-1))
    assert not list(ranked.ties())
    assert ranked.choose(FACTS).name == "b"


@pytest.mark.parametrize(
    ("one", "other", "tie"),
    [
        ({"arch": "x"}, {"arch": "y"}, False),
        ({"arch": ("x", "z")}, {"arch": ("y", "z")}, True),
        ({"device_class": "x"}, {"device_class": "y"}, False),
        ({"backend": "a", "runtime": "<2"}, {"backend": "a", "runtime": ">=2"}, False),
        ({"backend": "a", "runtime": "<=2"}, {"backend": "a", "runtime": ">=2"}, True),
        ({"backend": "a", "runtime": ">1,<2"}, {"backend": "a", "runtime": "!=1"}, True),
        ({"accelerator": "gpu"}, {"accelerator": "npu"}, True),
    ],
)
def test_which_variants_tie(one, other, tie):
    made = release(variant("a", needs=Predicate(**one)), variant("b", needs=Predicate(**other)))
    assert bool(list(made.ties())) == tie


@pytest.mark.parametrize(
    ("version", "specifier", "holds"),
    [
        ("1.23.0", ">=1.23", True),
        ("1.22.9", ">=1.23,<2", False),
        ("2026.4.1-123-abc", "==2026.4.1", True),
        ("1.9", "<1.10", True),
        ("1.23.0rc1", "==1.23", True),
        ("tensorrt-rtx 1.7.1.116", ">=1.7,<2", True),
        ("unknown", ">=0", False),
    ],
)
def test_versions(version, specifier, holds):
    assert satisfies(version, specifier) is holds


@pytest.mark.parametrize("bad", ["", "1.2", "~=1", ">=1,", ">=1.x"])
def test_bad_specifiers_are_refused(bad):
    with pytest.raises(ValueError, match="clause"):
        Predicate(backend="a", runtime=bad)


predicates = st.builds(
    Predicate,
    arch=st.lists(st.sampled_from("xyz"), max_size=2, unique=True),
    accelerator=st.lists(st.sampled_from(("gpu", "npu")), max_size=1),
    backend=st.sampled_from("ab"),
    runtime=st.sampled_from((None, "<2", ">=2", ">1.2,<3", "!=2", "==2")),
    memory_bytes=st.sampled_from((None, 4, 8)),
    device_class=st.lists(st.sampled_from("pq"), max_size=2, unique=True),
)
facts = st.builds(
    DeviceFacts,
    arch=st.sampled_from("xyz"),
    accelerators=st.lists(st.sampled_from(("gpu", "npu")), unique=True),
    backends=st.dictionaries(st.sampled_from("ab"), st.sampled_from(("1.2", "1.5", "2", "2.1", "3"))),
    memory_bytes=st.sampled_from((None, 4, 8)),
    device_class=st.sampled_from(("", "p", "q")),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(predicates, min_size=1, max_size=4), facts)
def test_a_release_without_ties_always_has_one_answer(needs, device):
    made = release(*(variant(f"v{index}", needs=need) for index, need in enumerate(needs)))
    fits = [v for v in made.variants if not v.needs.refusal(device)]
    if list(made.ties()):
        return
    if not fits:
        with pytest.raises(NoVariantError):
            made.choose(device)
    else:
        assert made.choose(device) == max(fits, key=lambda v: v.preference)
