"""What goes wrong in a simulated fleet, and how good its releases are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import attrs

__all__ = ["NO_FAULTS", "Faults", "Quality"]


@final
@attrs.frozen(kw_only=True)
class Faults:
    """How often things go wrong. Shares are probabilities in [0, 1].

    Attributes:
        offline: Of a device being switched off at any time.
        offline_s: How long it then is, on average, in seconds.
        delay_s: Of a report on its way, on average, in seconds. Reports overtake each other.
        duplicate: Of a report being delivered twice.
        lost_answer: Of the device not hearing that its reports were accepted, so that it sends them again.
        lying_clock: Of a device's clock being wrong, by up to `clock_s`.
        clock_s: By how many seconds at most.
        slow: Of a device having a slow link: its downloads take twenty times as long.
        reboot: Of a device losing what is not durable while it installs; it begins that again.
    """

    offline: float = 0.0
    offline_s: float = 7200.0
    delay_s: float = 5.0
    duplicate: float = 0.0
    lost_answer: float = 0.0
    lying_clock: float = 0.0
    clock_s: float = 30 * 86_400.0
    slow: float = 0.0
    reboot: float = 0.0


NO_FAULTS = Faults()


@final
@attrs.frozen(kw_only=True)
class Quality:
    """How a release fares on devices of a class.

    Attributes:
        failed: Share of devices that cannot install it.
        rolled_back: Share that go back during the soak.
        rejected: Share that refuse it before activating.
        silent: Share that fall silent once they accepted.
        late: Share that fail after they committed.
        transient: Share of attempts that fail for a reason that passes.
        slower: By how much the latency grows: 0.2 is 20 %.
    """

    failed: float = 0.0
    rolled_back: float = 0.0
    rejected: float = 0.0
    silent: float = 0.0
    late: float = 0.0
    transient: float = 0.0
    slower: float = 0.0

    @classmethod
    def of(cls, found: Mapping[str, Quality] | Quality, device_class: str) -> Quality:
        """Return the quality for a class: its own, else that of the class ""."""
        return found if isinstance(found, Quality) else found.get(device_class, found.get("", cls()))
