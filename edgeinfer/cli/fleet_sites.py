"""`edgeinfer fleet site|quarantine`: when a site may be disturbed, and what no device may run any more."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgeinfer.cli.console import Commands, print_line
from edgeinfer.cli.fleet_keys import add_fleet_and_database, opened_fleet
from edgeinfer.cli.inputs import whole_number
from edgeinfer.errors import OptionsError

if TYPE_CHECKING:
    from edgeinfer.fleet.operator.sites import MaintenanceWindow

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("site", help="say when a site's devices may be switched")
    add_fleet_and_database(parser)
    parser.add_argument("site", metavar="SITE", help="the site's name")
    parser.add_argument("--timezone", default="UTC", metavar="ZONE", help="such as Europe/Berlin")
    parser.add_argument(
        "--window",
        action="append",
        default=[],
        type=_window,
        metavar="HH:MM-HH:MM[,DAY,…]",
        help="such as 20:00-06:00,sat,sun; repeat it (default: always)",
    )
    parser.add_argument(
        "--max-in-flight", type=whole_number(1), metavar="N", help="devices at once (default: any number)"
    )
    parser.set_defaults(run=site)

    parser = commands.add_parser(
        "quarantine",
        help="withdraw a release in rollouts and in signed metadata",
    )
    add_fleet_and_database(parser)
    parser.add_argument("release", metavar="RELEASE", help="the digest of the release, or how it begins")
    parser.add_argument(
        "--class", dest="device_class", default="*", metavar="CLASS", help="only for this class of devices"
    )
    parser.add_argument("--reason", required=True, help="why, for the audit log")
    parser.set_defaults(run=quarantine)


def site(arguments: argparse.Namespace) -> None:
    """Keep the rules of a site."""
    with opened_fleet(arguments) as fleet:
        found = fleet.set_site(
            arguments.site,
            timezone=arguments.timezone,
            windows=arguments.window,
            max_in_flight=arguments.max_in_flight,
        )
    hours = "; ".join(
        f"{window.start:%H:%M}-{window.end:%H:%M} {', '.join(window.days)}" for window in found.windows
    )
    limit = "any number" if found.max_in_flight is None else found.max_in_flight
    print_line(f"site {found.name} ({found.timezone}): {hours or 'always'}; {limit} at once")


def quarantine(arguments: argparse.Namespace) -> None:
    """Withdraw a release everywhere."""
    with opened_fleet(arguments) as fleet:
        digest = fleet.find_release(arguments.release)
        fleet.quarantine(digest, device_class=arguments.device_class, reason=arguments.reason)
    where = "all devices" if arguments.device_class == "*" else f"devices of class {arguments.device_class}"
    print_line(f"{digest} is withdrawn from {where}")


def _window(text: str) -> MaintenanceWindow:
    from edgeinfer.fleet.operator.sites import MaintenanceWindow

    hours, *days = text.split(",")
    start, _, end = hours.partition("-")
    try:
        return MaintenanceWindow(start=start, end=end, **({"days": days} if days else {}))
    except OptionsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
