"""`edgeinfer fleet devices|rollout|run`: what an operator does with devices and rollouts."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from edgeinfer.cli.console import Commands, add_json, print_json, print_line, print_table
from edgeinfer.cli.fleet_keys import add_fleet_and_database, opened_fleet
from edgeinfer.cli.inputs import number, whole_number
from edgeinfer.errors import OptionsError

if TYPE_CHECKING:
    from edgeinfer.fleet.operator.rollout import Rollout

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("devices", help="list the devices: what each is to run and what it runs")
    _add(parser)
    parser.add_argument("--drifted", action="store_true", help="only those that do not run what they are to")
    add_json(parser)
    parser.set_defaults(run=devices)

    parser = commands.add_parser(
        "run", help="take reports in, move rollouts on, publish documents, without end"
    )
    _add(parser)
    parser.add_argument("--interval", type=number(above=0), default=5.0, metavar="S",
                        help="seconds between two rounds (default: 5)")  # fmt: skip
    parser.add_argument("--once", action="store_true", help="do one round")
    parser.set_defaults(run=run)

    rollout = commands.add_parser("rollout", help="move devices to a release, in stages, with gates")
    _add_rollout(rollout.add_subparsers(title="commands", metavar="COMMAND", required=True))


def _add_rollout(commands: Commands) -> None:
    parser = commands.add_parser("plan", help="plan a rollout; nothing happens before its start")
    _add(parser)
    parser.add_argument("release", metavar="RELEASE", help="the digest of the release, or how it begins")
    parser.add_argument(
        "--stage",
        action="append",
        required=True,
        type=_stage,
        metavar="KEY=VALUE,…",
        help="a stage, such as count=59,soak=6h or percent=100; repeat it, in order",
    )
    parser.add_argument("--gate", action="append", default=[], type=_gate, metavar="NAME:…",
                        help="FailureRate:0.05, Rejected:0.1, Regression:latency_p99:0.05 or "
                        "Constraint:latency_p99_ms; repeat it")  # fmt: skip
    parser.add_argument("--on-fail", choices=("rollback", "pause"), default="rollback")
    parser.add_argument("--group", default="", help="only devices of a group, such as site=berlin")
    parser.add_argument("--priority", type=int, default=0, help="the higher one takes a device over")
    parser.add_argument("--lease", default="24h", help="how long a device may wait before it begins (24h)")
    parser.add_argument("--retries", type=int, default=2, help="of failures that may pass (2)")
    parser.add_argument("--alpha", type=float, default=0.01, help="probability of a false alarm (0.01)")
    parser.set_defaults(run=plan)

    for name, text in (
        ("start", "freeze the stages and begin"),
        ("pause", "give no new documents"),
        ("hold", "pause, and revoke what is not activated yet"),
        ("resume", "go on; after a failed gate with --reason"),
        ("approve", "open the stage that waits for approval"),
        ("abort", "end it; needs --reason"),
        ("rollback", "take the release back from all devices; needs --reason"),
    ):
        parser = commands.add_parser(name, help=text)
        _add(parser, rollout=True)
        if name != "start":
            parser.add_argument("--reason", default="", help="why, for the audit log")
        parser.set_defaults(run=change, change=name)

    parser = commands.add_parser("status", help="say where a rollout stands, or list all")
    _add(parser)
    parser.add_argument("rollout", nargs="?", type=whole_number(1), metavar="NUMBER")
    add_json(parser)
    parser.set_defaults(run=status)

    parser = commands.add_parser("watch", help="show where a rollout stands until it ends")
    _add(parser, rollout=True)
    parser.add_argument("--interval", type=number(above=0), default=5.0, metavar="S")
    parser.set_defaults(run=watch)

    parser = commands.add_parser("simulate", help="say what a rollout would do, from the fleet's history")
    _add(parser, rollout=True)
    parser.add_argument("--bad-rate", type=number(above=0), default=0.2, metavar="SHARE",
                        help="on which share of the devices a bad release fails (default: 0.2)")  # fmt: skip
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.set_defaults(run=simulate)


def _add(parser: argparse.ArgumentParser, *, rollout: bool = False) -> None:
    add_fleet_and_database(parser)
    if rollout:
        parser.add_argument("rollout", type=whole_number(1), metavar="NUMBER", help="the rollout's number")


def _rollout(arguments: argparse.Namespace) -> Rollout:
    from edgeinfer.fleet.operator.rollout import Rollout

    found = Rollout(opened_fleet(arguments).database, arguments.rollout)
    _ = found.record  # or say that there is none
    return found


def devices(arguments: argparse.Namespace) -> None:
    """List the devices."""
    with opened_fleet(arguments) as fleet:
        rows = fleet.devices.drifted() if arguments.drifted else list(fleet.devices)
        if arguments.json:
            print_json([dict(row) for row in rows])
        else:
            print_table(fleet.devices.table(rows))


def run(arguments: argparse.Namespace) -> None:
    """Be the controller."""
    with opened_fleet(arguments) as fleet:
        if arguments.once:
            print_line(f"{fleet.tick()} changes")
        else:
            fleet.run(interval=arguments.interval)


def plan(arguments: argparse.Namespace) -> None:
    """Plan a rollout."""
    with opened_fleet(arguments) as fleet:
        rollout = fleet.rollout(
            fleet.find_release(arguments.release),
            stages=arguments.stage,
            gates=arguments.gate,
            on_fail=arguments.on_fail,
            group=arguments.group,
            priority=arguments.priority,
            lease=arguments.lease,
            retries=arguments.retries,
            alpha=arguments.alpha,
        )
        print_line(f"rollout {rollout.id} is planned; start it with: edgeinfer fleet rollout start "
                   f"{arguments.fleet} {rollout.id}")  # fmt: skip


def change(arguments: argparse.Namespace) -> None:
    """Do one of the commands that change a rollout."""
    rollout = _rollout(arguments)
    command: Any = getattr(rollout, arguments.change)
    command(**({} if arguments.change == "start" else {"reason": arguments.reason}))
    print_line(f"rollout {rollout.id} is {rollout.state}")


def status(arguments: argparse.Namespace) -> None:
    """Print where rollouts stand."""
    if arguments.rollout is None:
        with opened_fleet(arguments) as fleet:
            found = [rollout.status() for rollout in fleet.rollouts]
    else:
        found = [_rollout(arguments).status()]
    if arguments.json:
        print_json([item.to_dict() for item in found])
    elif arguments.rollout is None:
        print_table(*(item.table() for item in found))
    else:
        print_table(found[0].table(), found[0].gate_table())


def watch(arguments: argparse.Namespace) -> None:
    """Print the log of a rollout as it grows, until it ends."""
    rollout = _rollout(arguments)
    seen = 0
    while True:
        found = rollout.status()
        for line in found.log:
            if line["id"] > seen:
                at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(line["at"]))
                print_line(f"{at}Z  {line['actor']}: {line['action']}: {line['reason']}")
                seen = line["id"]
        if not found.record.state.live and found.state != "DRAFT":
            return
        time.sleep(arguments.interval)


def simulate(arguments: argparse.Namespace) -> None:
    """Print a forecast."""
    print_table(_rollout(arguments).simulate(bad_rate=arguments.bad_rate, seed=arguments.seed).table())


def _stage(text: str) -> Any:
    from edgeinfer.fleet.operator.stages import Stage

    kinds: dict[str, Any] = {
        "count": int,
        "percent": float,
        "quantile": float,
        "min_per_class": int,
        "per_hour": float,
        "growth": float,
        "needs_approval": _yes,
        "shadow": _yes,
    }
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name == "group" and equals:  # `group=site=berlin`
            values[name] = value
            continue
        if not equals or name not in {*kinds, "soak", "timeout", "deadline"}:
            raise argparse.ArgumentTypeError(f"{part!r} is not KEY=VALUE of a stage")
        try:
            values[name] = kinds.get(name, str)(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{part!r}: {error}") from error
    try:
        return Stage(**values)
    except OptionsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _yes(value: str) -> bool:
    return value.lower() in ("yes", "true", "1")


def _gate(text: str) -> Any:
    from edgeinfer.fleet.operator.gates import Constraint, FailureRate, Rejected
    from edgeinfer.fleet.operator.regression import Regression

    name, *rest = text.split(":")
    try:
        if name in ("FailureRate", "Rejected") and len(rest) == 1:
            return (FailureRate if name == "FailureRate" else Rejected)(max=float(rest[0]))
        if name == "Regression" and len(rest) == 2:
            return Regression(rest[0], margin=float(rest[1]))
        if name == "Constraint" and len(rest) in (1, 2):
            return Constraint(rest[0], **({"max": float(rest[1])} if rest[1:] else {}))
    except (OptionsError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a gate: FailureRate:SHARE, Regression:METRIC:MARGIN, …"
    )
