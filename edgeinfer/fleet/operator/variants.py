"""From artifacts to variants of a release: files, needs, golden feeds, and which one is preferred."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import attrs

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.manifest import Manifest
from edgeinfer.backends.registry import backends
from edgeinfer.budget import Budget
from edgeinfer.devices.default import preference_of
from edgeinfer.errors import EdgeInferError
from edgeinfer.feeds.feeds import Feeds
from edgeinfer.fleet.device.blobs import digest_of
from edgeinfer.fleet.device.golden import golden_file
from edgeinfer.fleet.device.predicate import Predicate
from edgeinfer.fleet.device.release import NAME, Blob, Variant
from edgeinfer.fleet.errors import PublishError
from edgeinfer.runtime.open import load

__all__ = [
    "Artifacts",
    "Candidate",
    "Tolerance",
    "blob_of",
    "candidates_of",
    "golden_of",
    "needs_of",
    "ranked",
]

Artifacts: TypeAlias = "Artifact | str | os.PathLike[str] | Iterable[Any] | Mapping[str, Any]"
_MACHINE = "machine"
_VERSION = re.compile(r"\d+(?:\.\d+)*")
_WILDCARD = re.compile(r"\d+(?:\.\d+)*\.\*\Z")
_LITERAL = re.compile(r"[A-Za-z0-9_.-]+\Z")


@final
@attrs.frozen(kw_only=True)
class Tolerance:
    """How far a device's outputs may be from the golden ones, as in `numpy.allclose`.

    Integer kernels differ between processors (without VNNI, ONNX Runtime's saturate), so that the defaults
    are wide; set what the model's use allows.

    Attributes:
        rtol: Relative to the golden output.
        atol: Absolute.
    """

    rtol: float = attrs.field(default=0.05, validator=attrs.validators.ge(0))
    atol: float = attrs.field(default=0.05, validator=attrs.validators.ge(0))


@final
@attrs.frozen(kw_only=True, eq=False)
class Candidate:
    """An artifact that is to be a variant.

    Attributes:
        name: The variant's name.
        artifact: The artifact, saved in `folder`.
        folder: Its folder.
    """

    name: str
    artifact: Artifact
    folder: Path

    @property
    def measured(self) -> dict[str, float]:
        """The figures that its manifest has, by the names of the budget's limits."""
        cost = self.artifact.manifest.cost
        known = {name: value for name, value in attrs.asdict(cost).items() if isinstance(value, (int, float))}
        # What the device needs is the disk's, golden inputs and all.
        return known | {"disk_bytes": sum(file.stat().st_size for file in self.folder.iterdir())}

    def variant(self, needs: Predicate, budget: Budget, *, golden: str | None, rank: int) -> Variant:
        """Return the variant.

        Raises:
            PublishError: A figure that is known breaks the budget.
        """
        broken = [v for v in budget.check(self.measured) if not v.not_measured]
        if broken:
            raise PublishError(
                f"The variant {self.name} breaks the budget.",
                found="; ".join(violation.describe() for violation in broken),
                hint="Leave it out, or find a smaller one with `edgeinfer tune`.",
            )
        return Variant(
            name=self.name,
            artifact_digest=self.artifact.digest,
            blobs=[blob_of(file, file.name) for file in sorted(self.folder.iterdir())],
            needs=needs,
            budget=budget,
            golden=golden,
            measured=self.measured,
            rank=rank,
        )


def candidates_of(artifacts: Artifacts, scratch: Path) -> tuple[Candidate, ...]:
    """Save artifacts below a folder and name them.

    Args:
        artifacts: One, several, or several by name; each an Artifact or its path.
        scratch: An empty folder.

    Raises:
        PublishError: There is none.
        ArtifactError: One cannot be read.
    """
    if isinstance(artifacts, Mapping):
        named = [(str(name), _opened(artifact)) for name, artifact in artifacts.items()]
    else:
        one = isinstance(artifacts, (Artifact, str, os.PathLike))
        found = [_opened(artifact) for artifact in ([artifacts] if one else list(artifacts))]  # type: ignore[arg-type]
        named = []
        for artifact in found:
            name, number = _name(artifact), 2
            while any(name == other for other, _ in named):
                name, number = f"{_name(artifact)}-{number}", number + 1
            named.append((name, artifact))
    if not named:
        raise PublishError("A release has at least one artifact.")
    bad = [name for name, _ in named if NAME.match(name) is None]
    if bad:
        raise PublishError(
            "That is no name of a variant.", expected="letters, digits, '.', '_' and '-'", found=repr(bad[0])
        )
    scratch.mkdir(parents=True)
    return tuple(
        Candidate(name=name, artifact=artifact.save(scratch / name), folder=scratch / name)
        for name, artifact in named
    )


def needs_of(artifact: Artifact) -> Predicate:
    """Return what an artifact's manifest says that a device must have.

    The rest of what it requires, such as an exact build of the runtime, is checked by the device when it
    loads the artifact beside the running one.
    """
    manifest = artifact.manifest
    machines = manifest.requires.get(_MACHINE, ())
    kinds = {"gpu", "npu"}
    unit = re.split(r"[.:]", manifest.device.lower())[0]
    return Predicate(
        arch=machines if all(map(_LITERAL.match, machines)) else (),
        accelerator=(unit,) if unit in kinds else (),
        backend=manifest.backend,
        runtime=_runtime(manifest) if manifest.kind == "device-bound" else None,
    )


def ranked(candidates: Sequence[Candidate]) -> list[int]:
    """Return the order of preference among variants that are equally specific: the lowest first.

    By their measured latency, if all were measured on one machine; else by what this library prefers when no
    backend is named. Two of one backend then have the same rank: which of them is for which device is for
    the publisher to say.
    """
    costs = [candidate.artifact.manifest.cost for candidate in candidates]
    places = {cost.measured_on for cost in costs}
    if all(cost.latency_p50_ms is not None for cost in costs) and len(places) == 1 and "" not in places:
        order = sorted({cost.latency_p50_ms for cost in costs if cost.latency_p50_ms is not None})
        return [order.index(cost.latency_p50_ms) for cost in costs if cost.latency_p50_ms is not None]
    return [preference_of(candidate.artifact.manifest.backend) for candidate in candidates]


def golden_of(
    candidates: Sequence[Candidate], feeds: Any, tolerance: Tolerance, *, count: int
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Run each variant on feeds, and return the golden files by the variant's name, and notes.

    A variant that cannot run on this machine gets the outputs of the first that can.

    Args:
        candidates: The variants.
        feeds: As for `Feeds.of`.
        tolerance: How far a device may be off.
        count: The most feeds that are taken.

    Raises:
        PublishError: None can run here.
        FeedsError: The feeds do not fit.
    """
    taken = list(Feeds.of(feeds, candidates[0].artifact.signature).take(count))
    if not taken:
        raise PublishError("There is no golden feed.", hint="Give at least one, or leave `golden` out.")
    outputs, notes, reasons = {}, [], []
    for candidate in candidates:
        if not _runs_here(candidate):
            reasons.append(f"{candidate.name}: does not run on this machine")
            continue
        with load(candidate.artifact) as session:
            outputs[candidate.name] = [dict(session.infer(feed)) for feed in taken]
    if not outputs:
        raise PublishError(
            "Golden outputs need a variant that runs on this machine.",
            found="; ".join(reasons),
            hint="Publish on a device of the fleet's kind, or leave `golden` out.",
        )
    reference = next(iter(outputs))
    for candidate in candidates:
        if candidate.name not in outputs:
            notes.append(f"The golden outputs of {candidate.name} are those of {reference}, run here.")
    files = {
        candidate.name: golden_file(
            list(zip(taken, outputs.get(candidate.name, outputs[reference]), strict=True)),
            rtol=tolerance.rtol,
            atol=tolerance.atol,
        )
        for candidate in candidates
    }
    return files, tuple(notes)


def blob_of(file: Path, path: str) -> Blob:
    """Return what a release says of a file."""
    with file.open("rb") as content:
        return Blob(path=path, size=file.stat().st_size, digest=digest_of(content))


def _runtime(manifest: Manifest) -> str | None:
    """Return the versions of the runtime that take an engine or a blob: its own, or all of a wildcard's."""
    found = _VERSION.search(manifest.backend_version)
    if found is None:
        return None
    for pattern in itertools.chain.from_iterable(manifest.requires.values()):
        if _WILDCARD.match(pattern) and fnmatch.fnmatchcase(found[0], pattern):
            *head, last = pattern.removesuffix(".*").split(".")
            return f">={'.'.join([*head, last])},<{'.'.join([*head, str(int(last) + 1)])}"
    return f"=={found[0]}"


def _opened(artifact: Any) -> Artifact:
    return artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)


def _name(artifact: Artifact) -> str:
    device = re.sub(r"[^a-z0-9]+", "-", artifact.manifest.device.lower()).strip("-")
    return f"{artifact.manifest.backend}-{device}" if device else artifact.manifest.backend


def _runs_here(candidate: Candidate) -> bool:
    entry = backends().get(candidate.artifact.manifest.backend)
    if entry is None or not entry.available:
        return False
    try:
        load(candidate.artifact).close()
    except EdgeInferError:
        return False  # an engine for another GPU, for example; the note says so
    return True
