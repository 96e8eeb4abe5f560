"""Which device is in which stage: frozen when a rollout starts, the same wherever it is computed.

Within a class, the devices of each site are ranked by SHA-256(salt ‖ device) and the sites are merged by
systematic sampling; the classes are merged in proportion. So every prefix of the resulting order has each
class in proportion to within one device, and each site in proportion in expectation. A stage is a piece of
that order: growing the fleet or changing a later stage moves no device of an earlier one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import attrs

from edgeinfer.fleet.operator.stages import Stage

__all__ = ["Candidate", "freeze", "matches", "order"]


@final
@attrs.frozen(kw_only=True)
class Candidate:
    """A device that a rollout may take.

    Attributes:
        device: Its name.
        device_class: Its hardware class.
        site: Where it stands.
        labels: Further facts that groups select by.
    """

    device: str
    device_class: str = ""
    site: str = ""
    labels: Mapping[str, str] = attrs.field(factory=dict)


def matches(candidate: Candidate, group: str) -> bool:
    """Whether a device is of a group: `class=NAME`, `site=NAME`, `LABEL=VALUE`, or the name of a label."""
    name, equals, value = group.partition("=")
    if not equals:
        return name in candidate.labels
    facts = {**candidate.labels, "class": candidate.device_class, "site": candidate.site}
    return facts.get(name) == value


def order(candidates: Iterable[Candidate], salt: str) -> list[Candidate]:
    """Return devices in the order in which they are taken."""
    strata: dict[str, dict[str, list[Candidate]]] = {}
    for candidate in candidates:
        strata.setdefault(candidate.device_class, {}).setdefault(candidate.site, []).append(candidate)
    keyed = []
    for name, sites in strata.items():
        members = _merge_sites(name, sites, salt)
        keyed += [
            ((position + 0.5) / len(members), _uniform(salt, member.device), member)
            for position, member in enumerate(members)
        ]
    return [member for _, _, member in sorted(keyed, key=lambda item: item[:2])]


def freeze(
    candidates: Iterable[Candidate], stages: Sequence[Stage], salt: str
) -> tuple[tuple[Candidate, ...], ...]:
    """Return the devices of each stage; each device is in one at most.

    Args:
        candidates: All devices that the rollout may take.
        stages: `count` and `percent` are totals of the stages up to and including this one.
        salt: What makes this rollout's order differ from another's.
    """
    remaining = order(candidates, salt)
    total = len(remaining)
    taken = 0
    cohorts = []
    for stage in stages:
        pool = [c for c in remaining if matches(c, stage.group)] if stage.group else remaining
        wanted = stage.size(total, taken, len(pool))
        chosen = _with_minimum(pool, wanted, stage.min_per_class)
        names = {candidate.device for candidate in chosen}
        remaining = [c for c in remaining if c.device not in names]
        taken += len(chosen)
        cohorts.append(tuple(chosen))
    return tuple(cohorts)


def _with_minimum(pool: Sequence[Candidate], wanted: int, least: int) -> list[Candidate]:
    """Take the first `wanted`, and more where a class would have fewer than `least`."""
    chosen = list(pool[:wanted])
    if not least:
        return chosen
    have: dict[str, int] = {}
    for candidate in chosen:
        have[candidate.device_class] = have.get(candidate.device_class, 0) + 1
    for candidate in pool[wanted:]:
        if have.get(candidate.device_class, 0) < least:
            chosen.append(candidate)
            have[candidate.device_class] = have.get(candidate.device_class, 0) + 1
    return chosen


def _merge_sites(name: str, sites: Mapping[str, list[Candidate]], salt: str) -> list[Candidate]:
    keyed = []
    for site, members in sites.items():
        ranked = sorted(members, key=lambda member: (_uniform(salt, member.device), member.device))
        start = _uniform(salt, f"{name}\0{site}")
        keyed += [((rank + start) / len(ranked), member.device, member) for rank, member in enumerate(ranked)]
    return [member for _, _, member in sorted(keyed, key=lambda item: item[:2])]


def _uniform(salt: str, name: str) -> float:
    """Return a number in [0, 1) from SHA-256(salt ‖ name)."""
    digest = hashlib.sha256(f"{salt}\0{name}".encode()).digest()
    return float(int.from_bytes(digest[:8], "big") / 2**64)
