"""`edgeinfer fleet init|sign|rotate|withdraw`: what is done with keys."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgeinfer.cli.console import Commands, add_json, print_json, print_line, print_table
from edgeinfer.cli.inputs import whole_number
from edgeinfer.display import Table
from edgeinfer.errors import OptionsError

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from edgeinfer.fleet.operator.fleet import Fleet
    from edgeinfer.fleet.operator.repository import Repository

__all__ = [
    "add_commands",
    "add_fleet",
    "add_fleet_and_database",
    "fleet_of",
    "opened_fleet",
    "say_missing",
]

_ROLES = ("root", "targets", "releases", "snapshot", "timestamp", "assignments")


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Add the fleet and its keys."""
    parser.add_argument(
        "fleet", metavar="FLEET", help="the fleet's folder, or a URL such as s3://bucket/fleet with --keys"
    )
    parser.add_argument("--keys", metavar="FOLDER", help="the folder of the keys (default: FLEET/keys)")


def add_fleet_and_database(parser: argparse.ArgumentParser) -> None:
    """Add the fleet, its keys and its database."""
    add_fleet(parser)
    parser.add_argument(
        "--database",
        metavar="URL",
        help="a path (SQLite) or a URL such as postgresql+psycopg://host/fleet (default: FLEET/fleet.db)",
    )


def opened_fleet(arguments: argparse.Namespace) -> Fleet:
    """Return the fleet that the arguments name, with its database."""
    from edgeinfer.fleet.operator.opening import open_fleet

    return open_fleet(arguments.fleet, keys=arguments.keys, database=arguments.database)


def fleet_of(arguments: argparse.Namespace) -> Repository:
    """Return the repository that the arguments name."""
    from edgeinfer.fleet.operator.opening import open_repository

    return open_repository(arguments.fleet, keys=arguments.keys)


def say_missing(missing: Mapping[str, int], done: str) -> None:
    """Print what was done, or which signatures it waits for."""
    if not missing:
        print_line(done)
        return
    roles = ", ".join(f"{role} ({count} more)" for role, count in missing.items())
    print_line(f"not published yet: signatures are missing for {roles}")
    print_line("sign it where their keys are: edgeinfer fleet sign FLEET --keys FOLDER")


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("init", help="make a fleet: its keys and its first signed metadata")
    add_fleet(parser)
    parser.add_argument("--number", action="append", default=[], type=_count, metavar="ROLE=N",
                        help="how many keys a role gets (default: 1), such as root=3")  # fmt: skip
    parser.add_argument("--threshold", action="append", default=[], type=_count, metavar="ROLE=N",
                        help="how many of them must sign (default: 1), such as root=2")  # fmt: skip
    parser.add_argument("--no-passphrase", action="store_true",
                        help="leave the private keys unencrypted: for trials only")  # fmt: skip
    parser.set_defaults(run=init)

    parser = commands.add_parser(
        "sign", help="add signatures to what waits for them, or sign the online metadata again"
    )
    add_fleet(parser)
    parser.add_argument("--drop", action="store_true", help="give up what waits for signatures")
    parser.set_defaults(run=sign)

    parser = commands.add_parser("rotate", help="replace the keys of a role")
    add_fleet(parser)
    parser.add_argument("role", choices=_ROLES, metavar="ROLE", help=", ".join(_ROLES))
    parser.add_argument("--add", action="append", default=[], metavar="URI=FILE",
                        help="add a key that is somewhere else: its securesystemslib URI (hsm:…, awskms:…, "
                        "gcpkms:…) and the PEM file of its public half")  # fmt: skip
    parser.add_argument("--remove", action="append", default=[], metavar="KEYID",
                        help="remove a key, by how its id begins (default: all)")  # fmt: skip
    parser.add_argument("--threshold", type=whole_number(1), metavar="N", help="how many keys must sign")
    parser.add_argument(
        "--resign", action="store_true", help="keep the keys; only sign again, for a later expiry"
    )
    parser.add_argument("--no-passphrase", action="store_true", help="leave the new key unencrypted")
    parser.set_defaults(run=rotate)

    parser = commands.add_parser("withdraw", help="withdraw a release: devices refuse it from then on")
    add_fleet(parser)
    parser.add_argument(
        "release", metavar="RELEASE", help="MODEL@VERSION, or how the release's digest begins"
    )
    parser.add_argument("--class", dest="device_class", default="*", metavar="CLASS",
                        help="only from devices of a class")  # fmt: skip
    parser.add_argument("--undo", action="store_true", help="allow it again")
    parser.set_defaults(run=withdraw)

    parser = commands.add_parser("keys", help="list the keys, and where their private halves are")
    add_fleet(parser)
    add_json(parser)
    parser.set_defaults(run=keys)


def init(arguments: argparse.Namespace) -> None:
    """Make a fleet."""
    from edgeinfer.fleet.operator.ceremonies import create_repository

    repository = fleet_of(arguments)
    create_repository(
        repository,
        counts=dict(arguments.number),
        thresholds=dict(arguments.threshold),
        encrypt=not arguments.no_passphrase,
    )
    ring = repository.keys.folder
    print_line(f"made {repository.storage.url}: this is what devices see; serve or copy it")
    print_line(f"made {ring / 'offline'}: take these keys off this machine")
    print_line(f"made {ring / 'online'}: these stay with whoever publishes and assigns")
    print_line(f"made {ring / 'root.json'}: give it to each device as its root of trust")


def sign(arguments: argparse.Namespace) -> None:
    """Add signatures."""
    repository = fleet_of(arguments)
    if arguments.drop:
        repository.drop()
        print_line("given up what waited for signatures")
        return
    say_missing(repository.sign(), "signed and published")


def rotate(arguments: argparse.Namespace) -> None:
    """Replace the keys of a role."""
    from edgeinfer.fleet.operator import ceremonies

    repository = fleet_of(arguments)
    ring, role = repository.keys, arguments.role
    added, removed = [], list(arguments.remove)
    if not arguments.resign and not arguments.add and not removed:
        removed = list(ceremonies.keys_of(repository, role))
        added = [ring.generate(role, encrypt=not arguments.no_passphrase) for _ in removed]
    for text in arguments.add:
        added.append(_added(repository, role, text))
    missing = ceremonies.rotate(repository, role, add=added, remove=removed, threshold=arguments.threshold)
    say_missing(
        missing, f"signed and published; keys of {role}: {', '.join(ceremonies.keys_of(repository, role))}"
    )


def withdraw(arguments: argparse.Namespace) -> None:
    """Withdraw a release."""
    from edgeinfer.fleet.operator import ceremonies

    repository = fleet_of(arguments)
    digest = ceremonies.digest_of(repository, arguments.release)
    missing = ceremonies.withdraw(
        repository, digest, device_class=arguments.device_class, undo=arguments.undo
    )
    where = "all devices" if arguments.device_class == "*" else f"devices of class {arguments.device_class}"
    done = "allowed again on" if arguments.undo else "withdrawn from"
    say_missing(missing, f"signed and published: {digest} is {done} {where}")


def keys(arguments: argparse.Namespace) -> None:
    """List the keys."""
    from edgeinfer.fleet.operator import ceremonies

    repository = fleet_of(arguments)
    used = {role: ceremonies.keys_of(repository, role) for role in _ROLES}
    rows = [
        (entry.role, keyid, entry.uri, "in use" if keyid in used.get(entry.role, ()) else "replaced")
        for keyid, entry in repository.keys.entries.items()
    ]
    if arguments.json:
        print_json([dict(zip(("role", "keyid", "uri", "state"), row, strict=True)) for row in rows])
    else:
        print_table(Table(title="Keys", columns=("role", "id", "where", ""), rows=sorted(rows)))


def _added(repository: Repository, role: str, text: str) -> Key:
    from edgeinfer.fleet.operator.key_files import public_key_of

    uri, equals, path = text.rpartition("=")
    if not equals or ":" not in uri:
        raise OptionsError("That names no key.", where="--add", expected="URI=FILE", found=text)
    public = public_key_of(Path(path).read_bytes())
    repository.keys.register(role, uri, public)
    return public


def _count(text: str) -> tuple[str, int]:
    role, equals, value = text.partition("=")
    if not equals or role not in _ROLES or not value.isdigit() or not int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE=N with a role of {', '.join(_ROLES)}")
    return role, int(value)
