"""Sites: when their devices may be disturbed, and how many of them at once."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from typing import Any, final

import attrs

from edgeinfer.errors import OptionsError
from edgeinfer.values import as_tuple

__all__ = ["MaintenanceWindow", "Site"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _time(value: object) -> dt.time:
    if isinstance(value, dt.time):
        return value
    try:
        return dt.time.fromisoformat(str(value))
    except ValueError as error:
        raise OptionsError(
            "That is not a time of day.", where="MaintenanceWindow", expected="HH:MM", found=repr(value)
        ) from error


def _days(value: Any) -> tuple[str, ...]:
    days = tuple(str(day).lower()[:3] for day in as_tuple(value))
    unknown = [day for day in days if day not in _DAYS]
    if unknown or not days:
        raise OptionsError(
            "That is not a day of the week.",
            where="MaintenanceWindow(days=)",
            expected=", ".join(_DAYS),
            found=", ".join(unknown) or "none",
        )
    return days


def _timezone(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    try:
        zoneinfo.ZoneInfo(str(value))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise OptionsError(
            "There is no such time zone.",
            where=f"Site({attribute.name}=)",
            expected="a name of the IANA database, such as Europe/Berlin",
            found=repr(value),
            hint="On a system without the database: pip install tzdata.",
        ) from error


@final
@attrs.frozen(kw_only=True)
class MaintenanceWindow:
    """Hours of a day, in the site's own time, in which models may be switched.

    Attributes:
        start: When it opens, `HH:MM`.
        end: When it closes; at or before `start` it is on the next day.
        days: The days on which it opens: `mon` to `sun`.
    """

    start: dt.time = attrs.field(converter=_time)
    end: dt.time = attrs.field(converter=_time)
    days: tuple[str, ...] = attrs.field(default=_DAYS, converter=_days)

    def open_until(self, now: int, zone: dt.tzinfo) -> int | None:
        """Return when it closes (seconds since 1970), or None while it is closed."""
        today = dt.datetime.fromtimestamp(now, zone).date()
        for day in (today, today - dt.timedelta(days=1)):
            if _DAYS[day.weekday()] not in self.days:
                continue
            closing = day if self.end > self.start else day + dt.timedelta(days=1)
            # The wall clock decides: on the days of a change of clocks the window is longer or shorter.
            opens = dt.datetime.combine(day, self.start, zone).timestamp()
            closes = dt.datetime.combine(closing, self.end, zone).timestamp()
            if opens <= now < closes:
                return int(closes)
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {"start": f"{self.start:%H:%M}", "end": f"{self.end:%H:%M}", "days": list(self.days)}


@final
@attrs.frozen(kw_only=True)
class Site:
    """A place with devices.

    Attributes:
        name: Its name.
        timezone: Of its windows, by the IANA database, such as `Europe/Berlin`.
        windows: When models may be switched; none: at any time.
        max_in_flight: How many of its devices may be switching at once; None: any number. Devices that
            accepted and fell silent count, for nobody knows that they work.
    """

    name: str
    timezone: str = attrs.field(default="UTC", validator=_timezone)
    windows: tuple[MaintenanceWindow, ...] = attrs.field(default=(), converter=as_tuple)
    max_in_flight: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )

    def open_until(self, now: int) -> int | None:
        """Return until when models may be switched (seconds since 1970); None: not now.

        A site without windows is always open: the year 9999.
        """
        if not self.windows:
            return _FOREVER
        zone = zoneinfo.ZoneInfo(self.timezone)
        closings = [c for c in (window.open_until(now, zone) for window in self.windows) if c is not None]
        return max(closings, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "name": self.name,
            "timezone": self.timezone,
            "windows": [window.to_dict() for window in self.windows],
            "max_in_flight": self.max_in_flight,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Site:
        """Read what `to_dict` wrote."""
        windows = [MaintenanceWindow(**window) for window in values["windows"]]
        return cls(**{**values, "windows": windows})


_FOREVER = 253_402_300_799
