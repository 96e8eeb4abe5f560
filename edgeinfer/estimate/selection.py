"""`select`: which devices a model fits, by estimate, and what would make it fit the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, final

import attrs

from edgeinfer.budget import Budget
from edgeinfer.devices.catalog import profiles
from edgeinfer.devices.device_profile import DeviceProfile
from edgeinfer.devices.profile import Target
from edgeinfer.display import Table
from edgeinfer.errors import OptionsError, TargetError
from edgeinfer.estimate.calibration import Calibration
from edgeinfer.estimate.estimate import Estimate, show
from edgeinfer.estimate.estimating import Source, estimate_work
from edgeinfer.estimate.remedies import Remedy, remedies
from edgeinfer.estimate.scaled import Scaled
from edgeinfer.estimate.selection_picture import picture
from edgeinfer.estimate.verdict import Verdict, judge
from edgeinfer.estimate.workload import workload
from edgeinfer.feeds.shapes import Shapes
from edgeinfer.model.model import ModelSource
from edgeinfer.values import as_tuple

__all__ = ["Candidate", "Fit", "Selection", "select"]

Candidate: TypeAlias = "str | Target | DeviceProfile | Calibration | Scaled"


@final
@attrs.frozen(kw_only=True)
class Fit:
    """How a model would do on one device.

    Attributes:
        target: The name that `target=` takes.
        description: The device's full name.
        estimate: What the model will need there.
        verdict: How that stands to the budget.
        remedy: The least change that would make it fit; None where it fits, or none of those tried would.
        note: What must be known of the device, such as that it is not made any more.
    """

    target: str
    description: str
    estimate: Estimate
    verdict: Verdict
    remedy: Remedy | None = None
    note: str = ""

    @property
    def fits(self) -> bool:
        """Whether every limit is kept by estimate, whatever the band; nothing unknown."""
        return self.verdict.word in ("fits", "may fit") and not self.verdict.unknown

    def describe(self) -> str:
        """Return what is worst, and what would help."""
        worst = self.verdict.worst
        parts = [check.describe() for check in self.verdict.broken]
        if not parts:
            parts = [worst.describe()] if worst is not None else list(self.estimate.notes[:1])
        if self.verdict.unknown:
            parts.append(f"not estimated: {', '.join(self.verdict.unknown)}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-compatible values."""
        remedy = self.remedy
        return {
            "target": self.target,
            "description": self.description,
            "verdict": self.verdict.word,
            "fits": self.fits,
            "ratio": self.verdict.ratio,
            "limits": [check.to_dict() for check in self.verdict.checks],
            "unknown": list(self.verdict.unknown),
            "estimate": self.estimate.to_dict(),
            "remedy": None
            if remedy is None
            else {"change": remedy.change, "estimate": remedy.estimate.to_dict()},
            "note": self.note,
        }


@final
@attrs.frozen(kw_only=True)
class Selection:
    """Devices, those that keep the budget best first.

    Attributes:
        model: The model's name.
        budget: The limits.
        fits: One for each device: those that keep every limit, then those of which not everything is known,
            then those that break one; each by the worst limit/estimate.
    """

    model: str
    budget: Budget
    fits: tuple[Fit, ...] = attrs.field(converter=as_tuple)

    def __iter__(self) -> Iterator[Fit]:
        return iter(self.fits)

    def __len__(self) -> int:
        return len(self.fits)

    def __getitem__(self, target: str) -> Fit:
        for fit in self.fits:
            if fit.target == target:
                return fit
        raise KeyError(target)

    @property
    def fitting(self) -> tuple[Fit, ...]:
        """The devices that keep every limit by estimate."""
        return tuple(fit for fit in self.fits if fit.fits)

    @property
    def best(self) -> Fit | None:
        """The device that keeps the budget with the most to spare, or None where none does."""
        return self.fitting[0] if self.fitting else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-compatible values."""
        return {
            "model": self.model,
            "budget": self.budget.to_dict(),
            "devices": [fit.to_dict() for fit in self.fits],
        }

    def table(self) -> Table:
        """Return one row a device."""
        rows = [
            (fit.target, fit.verdict.word, _ratio(fit), fit.describe(), _remedy(fit), fit.note)
            for fit in self.fits
        ]
        bases = {figure.basis for fit in self.fits for figure in fit.estimate.figures.values()}
        footer = (
            "catalog figures rank devices, and are no promise: measure before you decide"
            if "catalog" in bases
            else ""
        )
        limits = ", ".join(f"{name} {show(name, value)}" for name, value in self.budget.limits.items())
        return Table(
            title=f"Devices for {self.model}: {limits or 'no limits'}",
            columns=("target", "", "limit/estimate", "worst limit", "would fit with", ""),
            rows=rows,
            footer=footer,
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return picture(self.fits) + self.table().to_html()


def select(
    model: ModelSource,
    budget: Budget | Mapping[str, Any],
    *,
    candidates: Iterable[Candidate] | None = None,
    shapes: Shapes | None = None,
    batch: int | None = None,
) -> Selection:
    """Rank devices by how well a model keeps a budget on them.

    Nothing is measured. For a device that fails, the table says which limit, by how much, how sure that is,
    and which transform would make the model fit, by estimate.

    Args:
        model: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model.
        budget: The limits. Accuracy and temperature are not estimated.
        candidates: What to choose among: names of profiles, units (`intel-core-ultra-1:npu`) and power modes
            (`jetson-orin-nano@MAXN_SUPER`), profiles, and for targets that were measured their `Calibration`
            or, better, `Scaled`. None: every unit in the catalog whose peak is known, without legacy devices.
        shapes: As for `estimate`.
        batch: As for `estimate`.

    Raises:
        TargetError: A candidate is no device profile.
        OptionsError: There is no candidate.
    """
    limits = budget if isinstance(budget, Budget) else Budget.from_dict(budget)
    sources = [_source(each) for each in candidates] if candidates is not None else _every_unit()
    if not sources:
        raise OptionsError("There is no device to choose among.", where="candidates", expected="at least one")
    backends = dict.fromkeys(_backend(source) for source in sources)
    works = {name: workload(model, shapes=shapes, batch=batch, target=name) for name in backends}
    fits = []
    for source in sources:
        work = works[_backend(source)]
        profile = _profile(source)
        found = estimate_work(work, source)
        memory = profile.memory_bytes if profile is not None else None
        verdict = judge(found, limits, memory)
        remedy = None
        if verdict.broken:
            precisions = profile.precisions if profile is not None else frozenset({"float32", "int8"})
            tried = remedies(work, source, precisions)
            remedy = next((r for r in tried if _helps(judge(r.estimate, limits, memory), verdict)), None)
        fits.append(
            Fit(
                target=found.target,
                description=profile.description if profile is not None else found.target,
                estimate=found,
                verdict=verdict,
                remedy=remedy,
                note=_note(profile),
            )
        )
    fits.sort(key=lambda fit: (fit.verdict.rank, -fit.verdict.ratio))
    name = next(iter(works.values())).name
    return Selection(model=name, budget=limits, fits=fits)


def _helps(changed: Verdict, before: Verdict) -> bool:
    """Whether a change keeps all limits of which there is an estimate, and leaves none without one."""
    return not changed.broken and not set(changed.unknown) - set(before.unknown)


def _source(candidate: Candidate) -> Source:
    if isinstance(candidate, (Calibration, Scaled, DeviceProfile)):
        return candidate
    target = Target.parse(candidate)
    if target.profile is None:
        raise TargetError(
            f"There is nothing to estimate {target} by.",
            expected="a device profile, a Calibration or a Scaled",
            found=str(target),
            hint="candidates=[edgeinfer.devices.Calibration.load(path)] for a machine that was calibrated.",
        )
    return target.profile


def _every_unit() -> list[Source]:
    found: list[Source] = []
    for profile in profiles().values():
        if profile.legacy:
            continue
        for name, unit in profile.units.items():
            if any(unit.operations_s(p) for p in ("float32", "float16", "int8")):
                chosen = profile.on(name)
                full = profile.name if name == profile.unit else f"{profile.name}:{name}"
                found.append(attrs.evolve(chosen, name=full))
    return found


def _backend(source: Source) -> str:
    if isinstance(source, Scaled):
        return source.target.backend
    if isinstance(source, Calibration):
        return Target.parse(source.target).backend
    return source.backend


def _profile(source: Source) -> DeviceProfile | None:
    if isinstance(source, Scaled):
        return source.target.profile
    return source if isinstance(source, DeviceProfile) else None


def _note(profile: DeviceProfile | None) -> str:
    if profile is None or not profile.legacy:
        return ""
    return f"legacy: {profile.legacy}" + (f"; see {profile.successor}" if profile.successor else "")


def _ratio(fit: Fit) -> str:
    return f"{fit.verdict.ratio:.2f}" if fit.verdict.checks else "?"


def _remedy(fit: Fit) -> str:
    if fit.remedy is not None:
        return fit.remedy.change
    return "nothing of what was tried" if fit.verdict.broken else ""
