"""`publish`: one version of one model into the repository: files, `release.json`, metadata, in this order.

What is not named by signed metadata does not exist for a device, so that a publisher may fail or be killed
anywhere before the last step without harm; files that are there already are not written again.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import attrs
from tuf.api.metadata import TargetFile, Targets

from edgeinfer.budget import Budget
from edgeinfer.feeds.preprocessing import Preprocessing
from edgeinfer.fleet.device.blobs import blob_path
from edgeinfer.fleet.device.predicate import Predicate
from edgeinfer.fleet.device.release import NAME, Blob, Release, Variant
from edgeinfer.fleet.device.trust import release_path
from edgeinfer.fleet.errors import PublishError, TiedVariantsError
from edgeinfer.fleet.operator.deltas import make_deltas
from edgeinfer.fleet.operator.draft import Draft, State
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.variants import (
    Artifacts,
    Candidate,
    Tolerance,
    blob_of,
    candidates_of,
    golden_of,
    needs_of,
    ranked,
)

__all__ = ["Published", "publish", "published_releases"]

Lines: TypeAlias = "str | os.PathLike[str] | Sequence[str]"


@final
@attrs.frozen(kw_only=True)
class Published:
    """What `publish` did.

    Attributes:
        release: The release.
        missing: The signatures that are missing by role; the release is not out before `edgeinfer fleet sign`
            adds them. Empty when it is out.
        notes: What a person should know.
    """

    release: Release
    missing: Mapping[str, int]
    notes: tuple[str, ...]


def publish(
    repository: Repository,
    model: str,
    artifacts: Artifacts,
    *,
    golden: Any = None,
    interface: str | None = None,
    budget: Budget | Mapping[str, Budget] | None = None,
    version: str | None = None,
    needs: Mapping[str, Predicate] | None = None,
    preprocessing: Preprocessing | None = None,
    labels: Lines | None = None,
    thresholds: Mapping[str, float] | None = None,
    requires: str | None = None,
    tolerance: Tolerance | None = None,
    golden_count: int = 4,
    delta_bases: int = 2,
) -> Published:
    """Publish one version of a model.

    Args:
        repository: Where.
        model: The model's name.
        artifacts: The variants: an Artifact or its path, several, or several by name.
        golden: Feeds (as for `Feeds.of`) on which each variant is run here; devices must give the same
            outputs within the tolerance. None for no golden feeds.
        interface: What applications rely on, such as `defects/2`. None: that of the release before, or
            `MODEL/1`.
        budget: The limits that devices hold every variant to; or those of each, by the variant's name.
        version: The version's name. None: the next number.
        needs: What devices must be, by the variant's name, where the artifact's manifest says too little.
        preprocessing: How an image becomes an input; it goes into the bundle.
        labels: The names of the classes: a list, or a text file with one a line.
        thresholds: Numbers that the application decides by.
        requires: The stepping stone: the digest or version that a device must have committed before.
        tolerance: Of the golden outputs.
        golden_count: The most golden feeds.
        delta_bases: For how many releases before this one deltas are made.

    Returns:
        The release.

    Raises:
        TiedVariantsError: Two variants could fit one device equally well.
        PublishError: The version is there already, a variant breaks the budget, or a name is refused.
        RepositoryError, PublishConflictError: As `Repository.update`.
    """
    for name in filter(None, (model, version)):
        if NAME.match(name) is None:
            raise PublishError(
                "That is no name.", expected="letters, digits, '.', '_' and '-'", found=repr(name)
            )
    before = published_releases(repository, repository.state(), model)
    with tempfile.TemporaryDirectory(prefix="edgeinfer-") as scratch:
        folder = Path(scratch)
        candidates = candidates_of(artifacts, folder / "variants")
        goldens, notes = (
            ({}, ())
            if golden is None
            else golden_of(candidates, golden, tolerance or Tolerance(), count=golden_count)
        )
        bundle = _bundle(folder / "bundle", goldens, preprocessing, labels, thresholds)
        draft = Release(
            model=model,
            version=version or "0",
            interface=interface or (before[-1].interface if before else f"{model}/1"),
            variants=_variants(candidates, needs or {}, budget or Budget(), goldens),
            bundle=bundle,
            requires=requires,
            created_at=int(repository.clock()),
        )
        _refuse_ties(draft)
        files = {blob.digest: folder / "bundle" / blob.path for blob in bundle}
        for candidate, variant in zip(candidates, draft.variants, strict=True):
            files |= {blob.digest: candidate.folder / blob.path for blob in variant.blobs}
        deltas, made = make_deltas(
            repository.storage, draft, before[-delta_bases:] if delta_bases else (), files
        )
        contents: dict[str, bytes | Path] = {**files, **made}
        for digest, content in contents.items():
            _keep(repository, digest, content)
    releases: list[Release] = []

    def change(metadata: Draft) -> None:
        targets = metadata.edit_releases(model)
        release = attrs.evolve(draft, version=version or _next_version(targets), deltas=deltas)
        releases.append(release)
        _name_in(targets, release, repository)

    missing = repository.update(change)
    return Published(release=releases[-1], missing=missing, notes=notes)


def published_releases(repository: Repository, state: State, model: str) -> list[Release]:
    """Return the releases of a model, the oldest first.

    Raises:
        PublishError: The repository lacks one.
        DocumentError: One was published by a newer version of edgeinfer.
    """
    targets = state.release_targets(model)
    releases = []
    for path, info in (targets.targets if targets is not None else {}).items():
        digest = info.hashes["sha256"]
        place = f"targets/{path.rpartition('/')[0]}/{digest}.release.json"
        try:
            releases.append(Release.from_bytes(repository.storage.read(place)))
        except FileNotFoundError as error:
            raise PublishError("The repository lacks a release.", where=place) from error
    return sorted(releases, key=lambda release: (release.created_at, _number(release.version)))


def _variants(
    candidates: Sequence[Candidate],
    needs: Mapping[str, Predicate],
    budget: Budget | Mapping[str, Budget],
    goldens: Mapping[str, bytes],
) -> list[Variant]:
    budgets = {each.name: budget for each in candidates} if isinstance(budget, Budget) else budget
    unknown = sorted({*needs, *budgets} - {candidate.name for candidate in candidates})
    if unknown:
        raise PublishError(
            "Needs or a budget are given for a variant that there is not.",
            expected=", ".join(candidate.name for candidate in candidates),
            found=", ".join(unknown),
        )
    return [
        candidate.variant(
            needs.get(candidate.name) or needs_of(candidate.artifact),
            budgets.get(candidate.name, Budget()),
            golden=_golden_path(candidate.name) if candidate.name in goldens else None,
            rank=rank,
        )
        for candidate, rank in zip(candidates, ranked(candidates), strict=True)
    ]


def _refuse_ties(release: Release) -> None:
    pair = next(release.ties(), None)
    if pair is not None:
        a, b = pair
        raise TiedVariantsError(
            "Two variants could fit one device equally well.",
            where=f"{a.name} and {b.name}",
            expected="one that is more specific, or measured to be faster on the same machine",
            found=str(attrs.asdict(a.needs)),
            hint=f"Say what devices they are for: needs={{{a.name!r}: Predicate(…)}}; or give each artifact "
            "its measured cost (Artifact.with_cost).",
        )


def _bundle(
    folder: Path,
    goldens: Mapping[str, bytes],
    preprocessing: Preprocessing | None,
    labels: Lines | None,
    thresholds: Mapping[str, float] | None,
) -> list[Blob]:
    contents = {_golden_path(name): data for name, data in goldens.items()}
    if preprocessing is not None:
        contents["preprocessing.json"] = _json(preprocessing.to_dict())
    if labels is not None:
        contents["labels.json"] = _json(_lines(labels))
    if thresholds is not None:
        contents["thresholds.json"] = _json(dict(thresholds))
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return [blob_of(folder / path, path) for path in sorted(contents)]


def _keep(repository: Repository, digest: str, content: bytes | Path) -> None:
    path = f"blobs/{blob_path(digest)}"
    if not repository.storage.exists(path):
        with contextlib.suppress(FileExistsError):  # another publisher has the same file, and was faster
            repository.storage.create(path, content)


def _name_in(targets: Targets, release: Release, repository: Repository) -> None:
    path = release_path(release.model, release.version)
    if path in targets.targets:
        raise PublishError(
            "That version is published already.",
            where=f"{release.model} {release.version}",
            found=f"digest {targets.targets[path].hashes['sha256']}",
            hint="Versions are never changed; publish the next one.",
        )
    data = release.to_bytes()
    place = f"targets/{path.rpartition('/')[0]}/{release.digest}.release.json"
    with contextlib.suppress(FileExistsError):  # the same bytes: its name has their digest
        repository.storage.create(place, data)
    targets.targets[path] = TargetFile(len(data), {"sha256": release.digest}, path)


def _next_version(targets: Targets) -> str:
    found = [_number(path.split("/")[2]) for path in targets.targets]
    return str(max(found, default=0) + 1)


def _number(version: str) -> int:
    return int(version) if version.isdigit() else 0


def _golden_path(name: str) -> str:
    return f"golden/{name}.npz"


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def _lines(labels: Lines) -> list[str]:
    if isinstance(labels, (str, os.PathLike)):
        return Path(labels).read_text(encoding="utf-8").splitlines()
    return [str(label) for label in labels]
