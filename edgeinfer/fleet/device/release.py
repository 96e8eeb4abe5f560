"""`Release`: one version of one model for the fleet, as its `release.json` describes it.

It names every file by size and digest, and says which variant is for which device. It is the only target of
the signed metadata: what it names is trusted because it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, final

import attrs

from edgeinfer.artifact.decode import encode
from edgeinfer.budget import Budget
from edgeinfer.fleet.device.documents import canonical_json, decode_document, parse_document, sha256
from edgeinfer.fleet.device.predicate import DeviceFacts, Predicate
from edgeinfer.fleet.errors import DocumentError, NoVariantError, TiedVariantsError
from edgeinfer.values import as_tuple

__all__ = [
    "DIGEST",
    "MAX_RELEASE_BYTES",
    "NAME",
    "Blob",
    "Delta",
    "DeviceFacts",
    "Predicate",
    "Release",
    "Variant",
]

MAX_RELEASE_BYTES = 1 << 20
DIGEST = re.compile(r"[0-9a-f]{64}\Z")
# Names of models, versions and variants stand in paths and in names of TUF roles.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_DIGEST = attrs.validators.matches_re(DIGEST)
_NAME = attrs.validators.matches_re(NAME)
_SIZE = attrs.validators.ge(0)
_FORMAT = 1


def _relative(_: object, __: object, path: str) -> None:
    parts = PurePosixPath(path).parts
    inside = path and str(PurePosixPath(*parts)) == path and not path.startswith("/") and ".." not in parts
    if not inside or path == "." or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} is no path of a file inside a folder")


@final
@attrs.frozen(kw_only=True)
class Blob:
    """A file, found by its digest.

    Attributes:
        path: Where it belongs inside the folder of the artifact, or of the bundle.
        size: Its size in bytes.
        digest: Its SHA-256.
    """

    path: str = attrs.field(validator=_relative)
    size: int = attrs.field(validator=_SIZE)
    digest: str = attrs.field(validator=_DIGEST)


@final
@attrs.frozen(kw_only=True)
class Delta:
    """A file from which, with another that a device may have, a blob is made.

    Attributes:
        of: The digest of the blob that it makes.
        base: The digest of the blob that it needs.
        size: The size of the delta in bytes.
        digest: The SHA-256 of the delta.
        format: How it is applied; a reader passes over formats that it does not know.
    """

    of: str = attrs.field(validator=_DIGEST)
    base: str = attrs.field(validator=_DIGEST)
    size: int = attrs.field(validator=_SIZE)
    digest: str = attrs.field(validator=_DIGEST)
    format: str


@final
@attrs.frozen(kw_only=True)
class Variant:
    """One artifact of a release, and which devices it is for.

    Attributes:
        name: Its name within the release, such as `openvino-cpu`.
        artifact_digest: The artifact's own digest (`Artifact.digest`).
        blobs: All files of the artifact's folder, `manifest.json` among them.
        needs: What a device must be.
        budget: The limits that the device holds it to, before and after it activates.
        golden: The path, in the bundle, of its golden feeds (see `golden.py`); None for none.
        measured: Figures of the publisher's measurements, by the names of the budget's limits.
        rank: Which of variants that are equally specific is taken: the lowest.
    """

    name: str = attrs.field(validator=_NAME)
    artifact_digest: str = attrs.field(validator=_DIGEST)
    blobs: tuple[Blob, ...] = attrs.field(converter=as_tuple)
    needs: Predicate = attrs.field(factory=Predicate)
    budget: Budget = attrs.field(factory=Budget)
    golden: str | None = None
    measured: Mapping[str, float] = attrs.field(factory=dict)
    rank: int = 0

    def __attrs_post_init__(self) -> None:
        _refuse_doubles("path", [blob.path for blob in self.blobs])

    @property
    def size(self) -> int:
        """The size of all its files in bytes."""
        return sum(blob.size for blob in self.blobs)

    @property
    def preference(self) -> tuple[int, ...]:
        """The greater, the more it is preferred where several variants fit."""
        return (*self.needs.specificity, -self.rank)


@final
@attrs.frozen(kw_only=True)
class Release:
    """One version of one model for the fleet.

    Attributes:
        model: The model's name.
        version: The version's name; a version is never published twice.
        interface: What applications rely on, such as `defects/2`.
        variants: The artifacts, of which each device takes one.
        bundle: The files beside the model: preprocessing, labels, thresholds, golden feeds.
        deltas: Cheaper ways to some blobs.
        requires: The stepping stone: the digest or the version that must be committed before; None for none.
        created_at: When it was published, in seconds since 1970 UTC.
        source: The bytes that it was read from, so that fields that are unknown here keep their digest.
    """

    model: str = attrs.field(validator=_NAME)
    version: str = attrs.field(validator=_NAME)
    interface: str
    variants: tuple[Variant, ...] = attrs.field(converter=as_tuple, validator=attrs.validators.min_len(1))
    bundle: tuple[Blob, ...] = attrs.field(default=(), converter=as_tuple)
    deltas: tuple[Delta, ...] = attrs.field(default=(), converter=as_tuple)
    requires: str | None = None
    created_at: int = attrs.field(default=0, validator=_SIZE)
    format: int = attrs.field(default=_FORMAT, validator=attrs.validators.in_((_FORMAT,)))
    source: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata={"json": False})

    def __attrs_post_init__(self) -> None:
        _refuse_doubles("variant", [variant.name for variant in self.variants])
        _refuse_doubles("path", [blob.path for blob in self.bundle])
        paths = {blob.path for blob in self.bundle}
        for variant in self.variants:
            if variant.golden is not None and variant.golden not in paths:
                raise ValueError(f"the golden feeds {variant.golden!r} are not in the bundle")

    @property
    def digest(self) -> str:
        """The SHA-256 of its bytes: what assignments and reports name."""
        return sha256(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return its `release.json`. What was read and not changed since is as it was read."""
        if self.source is not None and _decoded(self.source) == self:
            return self.source
        return canonical_json(encode(self, {Budget: Budget.to_dict}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Release:
        """Read a `release.json`.

        Raises:
            DocumentError: It is none, is larger than `MAX_RELEASE_BYTES`, or asks for what is not known here.
        """
        return attrs.evolve(_decoded(data), source=data)

    def choose(self, facts: DeviceFacts) -> Variant:
        """Return the variant for a device: of those that fit, the most specific.

        Raises:
            NoVariantError: None fits; it says why, for each.
            TiedVariantsError: Two fit equally well. Publishing refuses such releases.
        """
        refusals = {variant.name: variant.needs.refusal(facts) for variant in self.variants}
        fitting = sorted(
            (v for v in self.variants if not refusals[v.name]), key=lambda v: v.preference, reverse=True
        )
        where = f"{self.model} {self.version}"
        if not fitting:
            raise NoVariantError(
                "No variant of the release fits this device.",
                where=where,
                expected="one that fits",
                found="; ".join(f"{name}: {reason}" for name, reason in refusals.items()),
                facts={"refusals": refusals},
            )
        if len(fitting) > 1 and fitting[0].preference == fitting[1].preference:
            raise TiedVariantsError(
                "Two variants of the release fit this device equally well.",
                where=where,
                found=f"{fitting[0].name} and {fitting[1].name}",
            )
        return fitting[0]

    def ties(self) -> Iterator[tuple[Variant, Variant]]:
        """Yield the pairs of variants between which some device could not choose."""
        for index, a in enumerate(self.variants):
            for b in self.variants[index + 1 :]:
                if a.preference == b.preference and a.needs.overlaps(b.needs):
                    yield a, b

    def bundle_for(self, variant: Variant) -> tuple[Blob, ...]:
        """Return the files of the bundle that a device with this variant needs."""
        others = {v.golden for v in self.variants} - {variant.golden}
        return tuple(blob for blob in self.bundle if blob.path not in others)

    def blobs_for(self, variant: Variant) -> tuple[Blob, ...]:
        """Return all files that a device with this variant downloads: its own and the bundle's."""
        return (*variant.blobs, *self.bundle_for(variant))


@functools.lru_cache(maxsize=4)  # a device reads the same few again and again; values are frozen
def _decoded(data: bytes) -> Release:
    what = "release"
    fields = parse_document(data, what=what, max_bytes=MAX_RELEASE_BYTES)
    if fields.get("format") != _FORMAT:
        raise DocumentError("The release has another format.", expected=_FORMAT, found=fields.get("format"))
    known = frozenset(field.name for field in attrs.fields(Release)) - {"source"}
    return decode_document(Release, fields, what=what, known=known, hooks={Budget: _budget})


def _budget(value: Any) -> Budget:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return Budget.from_dict(value)


def _refuse_doubles(what: str, names: list[str]) -> None:
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise ValueError(f"two have the {what} {doubles[0]!r}")
