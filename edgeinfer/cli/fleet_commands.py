"""`edgeinfer fleet`: the commands of those who operate a fleet."""

from __future__ import annotations

from edgeinfer.cli import fleet_keys, fleet_releases, fleet_rollouts, fleet_serving, fleet_sites
from edgeinfer.cli.console import Commands

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the command, and below it those of each part."""
    parser = commands.add_parser("fleet", help="publish releases, and keep a fleet of devices running them")
    inner = parser.add_subparsers(title="commands of the fleet", metavar="COMMAND", required=True)
    for module in (fleet_keys, fleet_releases, fleet_rollouts, fleet_sites, fleet_serving):
        module.add_commands(inner)
