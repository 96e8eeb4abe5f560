"""`edgeinfer fleet serve|enroll|revoke`: a fleet over HTTP, and who belongs to it."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from edgeinfer.cli.console import Commands, print_line
from edgeinfer.cli.fleet_keys import add_fleet_and_database, opened_fleet
from edgeinfer.cli.inputs import number, whole_number

__all__ = ["add_commands"]

_TOKEN = "EDGEINFER_FLEET_TOKEN"  # noqa: S105 (the name of a variable)
_WEBHOOK_SECRET = "EDGEINFER_WEBHOOK_SECRET"  # noqa: S105


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser(
        "serve", help="serve a fleet over HTTP: to its devices, and a page to those who operate it"
    )
    add_fleet_and_database(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=whole_number(1), default=8080, metavar="N")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="the server's TLS certificate")
    parser.add_argument("--certificate-key", type=Path, metavar="FILE", help="its private key")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"what an operator signs in with (default: the variable {_TOKEN}; "
        "without it the page can only be read)",
    )
    parser.add_argument(
        "--interval",
        type=number(above=0),
        default=5.0,
        metavar="S",
        help="seconds between two rounds of the controller (default: 5)",
    )
    parser.add_argument(
        "--no-controller",
        action="store_true",
        help="only serve: `edgeinfer fleet run` moves rollouts on elsewhere",
    )
    parser.add_argument(
        "--doorbell",
        metavar="URL",
        help="an MQTT broker that tells devices to look, mqtt://HOST or mqtts://HOST",
    )
    parser.add_argument(
        "--webhook",
        action="append",
        default=[],
        metavar="URL",
        help=f"send each line of the audit log there, signed with the variable {_WEBHOOK_SECRET}; repeat it",
    )
    parser.set_defaults(run=serve)

    parser = commands.add_parser("enroll", help="print a token with which a device enrols itself once")
    add_fleet_and_database(parser)
    parser.add_argument("device", metavar="DEVICE", help="the device's name")
    parser.add_argument(
        "--class", dest="device_class", default="", metavar="CLASS", help="its hardware class"
    )
    parser.add_argument("--site", default="", help="where it stands")
    parser.add_argument("--label", action="append", default=[], type=_label, metavar="NAME=VALUE")
    parser.add_argument("--lifetime", default="24h", metavar="TIME", help="of the token (default: 24h)")
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="write the device's key there instead, for agent run --key",
    )
    parser.set_defaults(run=enroll)

    parser = commands.add_parser("revoke", help="remove a device; its keys and tokens are void from now on")
    add_fleet_and_database(parser)
    parser.add_argument("device", metavar="DEVICE", help="the device's name")
    parser.set_defaults(run=revoke)


def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    from edgeinfer.fleet.operator.server.options import ServerOptions
    from edgeinfer.fleet.operator.server.running import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    token = os.environ.get(_TOKEN)
    if arguments.token_file is not None:
        token = arguments.token_file.read_text(encoding="utf-8").strip()
    options = ServerOptions(
        token=token,
        controller=not arguments.no_controller,
        interval=arguments.interval,
        doorbell=arguments.doorbell,
        webhooks=arguments.webhook,
        webhook_secret=os.environ.get(_WEBHOOK_SECRET),
    )
    with opened_fleet(arguments) as fleet:
        serve(
            fleet,
            options,
            host=arguments.host,
            port=arguments.port,
            certificate=arguments.certificate,
            key=arguments.certificate_key,
        )


def enroll(arguments: argparse.Namespace) -> None:
    """Print a token, or write a key."""
    labels = dict(arguments.label)
    with opened_fleet(arguments) as fleet:
        if arguments.key_file is None:
            print_line(
                fleet.devices.token(
                    arguments.device,
                    device_class=arguments.device_class,
                    site=arguments.site,
                    labels=labels,
                    lifetime=arguments.lifetime,
                )
            )
            return
        # Created before the device is: a key that cannot be written enrols nobody.
        descriptor = os.open(arguments.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            key = fleet.devices.add(
                arguments.device, device_class=arguments.device_class, site=arguments.site, labels=labels
            )
            file.write(key.hex() + "\n")
        print_line(f"enrolled {arguments.device}; its key is in {arguments.key_file}")


def revoke(arguments: argparse.Namespace) -> None:
    """Revoke a device."""
    with opened_fleet(arguments) as fleet:
        known = fleet.devices.revoke(arguments.device)
    print_line(f"{arguments.device} is revoked" if known else f"{arguments.device} was not enrolled")


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value
