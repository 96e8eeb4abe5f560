"""`edgeinfer devices`, `estimate` and `select`: what devices are like, and what a model would need there."""

from __future__ import annotations

import argparse

from edgeinfer.cli.console import Commands, add_json, print_json, print_report, print_table
from edgeinfer.cli.inputs import add_shapes, new_file, shape_values, whole_number
from edgeinfer.cli.limits import add_budget, budget_of
from edgeinfer.errors import OptionsError

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("devices", help="list the device profiles, or show one with its sources")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a profile, a unit (NAME:npu) or a mode (NAME@MODE)"
    )
    add_json(parser)
    parser.set_defaults(run=devices)

    parser = commands.add_parser("estimate", help="say what a model would need on a target; or calibrate one")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="an .onnx file")
    parser.add_argument(
        "--target", required=True, help="a device profile, or a backend with or without :DEVICE"
    )
    parser.add_argument(
        "--precision", choices=("float32", "float16", "int8"), help="as if it were in this precision"
    )
    parser.add_argument("--calibration", metavar="FILE", help="what --calibrate wrote on that machine")
    parser.add_argument(
        "--calibrate",
        type=new_file,
        metavar="FILE",
        help="measure synthetic nets on this machine's target first, and write the prices of its kernels",
    )
    parser.add_argument(
        "--nets", type=whole_number(20), default=160, metavar="N", help="how many of them (default: 160)"
    )
    add_shapes(parser)
    add_json(parser)
    parser.set_defaults(run=estimate)

    parser = commands.add_parser("select", help="rank devices by how well a model keeps a budget on them")
    parser.add_argument("model", metavar="MODEL", help="an .onnx file")
    add_budget(parser)
    parser.add_argument(
        "--candidate",
        action="append",
        metavar="NAME",
        help="a device to choose among; may be repeated (default: all)",
    )
    parser.add_argument(
        "--calibration",
        action="append",
        default=[],
        metavar="FILE",
        help="a calibrated machine to choose among",
    )
    add_shapes(parser)
    add_json(parser)
    parser.set_defaults(run=select)


def devices(arguments: argparse.Namespace) -> None:
    """Print the catalog, or one profile of it."""
    from edgeinfer.devices import Target, profiles

    catalog = profiles()
    if arguments.name is None:
        if arguments.json:
            print_json({name: profile.to_dict() for name, profile in catalog.items()})
        else:
            print_table(catalog.table())
        return
    profile = Target.parse(arguments.name).profile
    if profile is None:
        raise OptionsError(
            "That is a backend, and no device profile.", expected=", ".join(catalog), found=arguments.name
        )
    print_report(profile, arguments)


def estimate(arguments: argparse.Namespace) -> None:
    """Print the estimate, after calibrating where that was asked for."""
    from edgeinfer.devices import Calibration, calibrate
    from edgeinfer.devices import estimate as estimate_model

    calibration = None
    if arguments.calibrate:
        calibration = calibrate(arguments.target, nets=arguments.nets)
        calibration.save(arguments.calibrate)
        if arguments.model is None:
            print_report(calibration, arguments)
            return
    elif arguments.calibration:
        calibration = Calibration.load(arguments.calibration)
    if arguments.model is None:
        raise OptionsError("There is no model to estimate.", expected="MODEL, or --calibrate FILE")
    found = estimate_model(
        arguments.model,
        arguments.target,
        calibration=calibration,
        precision=arguments.precision,
        shapes=shape_values(arguments),
        batch=arguments.batch,
    )
    print_report(found, arguments)


def select(arguments: argparse.Namespace) -> None:
    """Print the ranking."""
    from edgeinfer.devices import Calibration
    from edgeinfer.devices import select as select_devices

    calibrations = [Calibration.load(path) for path in arguments.calibration]
    named = arguments.candidate or []
    candidates = [*calibrations, *named] if calibrations or named else None
    found = select_devices(
        arguments.model,
        budget_of(arguments),
        candidates=candidates,
        shapes=shape_values(arguments),
        batch=arguments.batch,
    )
    print_report(found, arguments)
