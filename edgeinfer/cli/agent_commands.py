"""`edgeinfer agent`: what runs on a device of a fleet."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from edgeinfer.cli.console import (
    Commands,
    add_json,
    add_options,
    option_values,
    print_json,
    print_line,
    print_table,
)
from edgeinfer.errors import OptionsError

if TYPE_CHECKING:
    from edgeinfer.fleet.device.options import AgentOptions

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the command, and below it its own."""
    parser = commands.add_parser("agent", help="install on this device what its fleet assigns to it")
    inner = parser.add_subparsers(title="commands of the agent", metavar="COMMAND", required=True)

    run = inner.add_parser("run", help="work until SIGTERM: a service (docs/fleet-device.md)")
    _add_folder(run)
    run.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="URL",
        help="the repository: a folder or URL; repeat it for mirrors",
    )
    run.add_argument("--root", type=Path, metavar="FILE", help="the trusted root.json, at the first start")
    run.add_argument("--device", metavar="NAME", help="the device's name in the fleet")
    run.add_argument("--device-class", metavar="CLASS", help="the class of the device")
    run.add_argument("--key", type=Path, metavar="FILE", help="the device's key, at the first start")
    run.add_argument("--doorbell", metavar="URL", help="an MQTT broker that tells this device to look")
    run.add_argument("--until-idle", action="store_true", help="end as soon as there is nothing to do")
    add_options(run)
    run.set_defaults(run=_run)

    enroll = inner.add_parser("enroll", help="make this device a member of a fleet, with a one-time token")
    _add_folder(enroll)
    enroll.add_argument("--source", required=True, metavar="URL", help="of the fleet's server")
    enroll.add_argument(
        "--token", type=Path, required=True, metavar="FILE", help="what `edgeinfer fleet enroll` printed"
    )
    enroll.set_defaults(run=_enroll)

    renew = inner.add_parser("replace-key", help="make a new key for this device")
    _add_folder(renew)
    renew.add_argument("--source", required=True, metavar="URL", help="of the fleet's server")
    renew.set_defaults(run=_replace_key)

    status = inner.add_parser("status", help="what runs, and where the last update stands")
    _add_folder(status)
    add_json(status)
    status.set_defaults(run=_status)

    imports = inner.add_parser("import", help="update from a USB stick or another mounted folder")
    _add_folder(imports)
    imports.add_argument("source", type=Path, metavar="PATH", help="the repository's folder")
    imports.add_argument(
        "--root", type=Path, metavar="FILE", help="the trusted root.json, at the first start"
    )
    add_options(imports)
    imports.set_defaults(run=_import)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the agent, such as /var/lib/edge")


def _agent_options(arguments: argparse.Namespace) -> AgentOptions:
    from edgeinfer.fleet.device.options import AgentOptions

    values: dict[str, Any] = dict(option_values(arguments) or {})
    known = [field.name for field in attrs.fields(AgentOptions)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise OptionsError(
            "The agent has no such option.", where="--option", expected=", ".join(known), found=unknown[0]
        )
    return AgentOptions(**values)


def _run(arguments: argparse.Namespace) -> None:
    from edgeinfer.fleet.device.agent import Agent
    from edgeinfer.fleet.device.identity import Identity

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.key is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        Identity.enrol(arguments.folder, arguments.device, arguments.device_class, arguments.key)
    agent = Agent(
        arguments.folder,
        source=arguments.source,
        root=arguments.root.read_bytes() if arguments.root is not None else None,
        device=arguments.device,
        device_class=arguments.device_class,
        options=_agent_options(arguments),
        doorbell=arguments.doorbell,
    )
    agent.run(until_idle=arguments.until_idle)


def _enroll(arguments: argparse.Namespace) -> None:
    from edgeinfer.fleet.device.enrolment import enroll

    token = arguments.token.read_text(encoding="ascii")
    identity = enroll(arguments.folder, arguments.source, token)
    print_line(f"this device is {identity.device}, life {identity.incarnation}")


def _replace_key(arguments: argparse.Namespace) -> None:
    from edgeinfer.fleet.device.enrolment import replace_key

    identity = replace_key(arguments.folder, arguments.source)
    print_line(f"{identity.device} has a new key; restart its agent")


def _status(arguments: argparse.Namespace) -> None:
    from edgeinfer.fleet.device.status import AgentStatus

    status = AgentStatus.of(arguments.folder)
    if arguments.json:
        print_json(status.to_dict())
    else:
        print_table(status.table())


def _import(arguments: argparse.Namespace) -> None:
    from edgeinfer.fleet.device.agent import Agent
    from edgeinfer.fleet.device.importing import ask_for_import, check_is_repository
    from edgeinfer.fleet.errors import AgentBusyError

    check_is_repository(arguments.source)
    root = arguments.root.read_bytes() if arguments.root is not None else None
    try:
        agent = Agent(
            arguments.folder,
            source=str(arguments.source),
            root=root,
            options=_agent_options(arguments),
        )
    except AgentBusyError:
        ask_for_import(arguments.folder, arguments.source)
        print_line("The agent that runs here was asked to import it; see: edgeinfer agent status.")
        return
    agent.run(until_idle=True)
    print_table(agent.status().table())
