"""`edgeinfer optimize` and `compile`: the commands that make something."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeinfer.cli.console import (
    Commands,
    add_json,
    add_options,
    option_values,
    print_json,
    print_line,
    print_table,
)
from edgeinfer.cli.inputs import add_feeds, feeds_of, new_file, new_path
from edgeinfer.errors import OptionsError

if TYPE_CHECKING:
    from edgeinfer.model.model import Model

__all__ = ["EFFORTS", "add_commands", "parse_transform", "print_result"]

EFFORTS = ("fast", "default", "thorough")


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("optimize", help="apply transforms to a model, or the recipe of a target")
    parser.add_argument("model", metavar="MODEL", help="an .onnx file")
    parser.add_argument(
        "-o", "--output", required=True, type=new_file, metavar="OUT", help="the .onnx file to write"
    )
    parser.add_argument("--transform", nargs="+", action="extend", metavar="NAME",
                        help="transforms in order, such as Simplify FuseBatchNorm 'FixShapes({\"N\": 1})'; "
                        "without any, the recipe of the target")  # fmt: skip
    parser.add_argument("--target", help="a device profile, or a backend such as openvino:NPU")
    parser.add_argument("--min-sqnr-db", type=float, metavar="DB",
                        help="what the outputs of an int8 model must keep, against float")  # fmt: skip
    parser.add_argument("--effort", choices=EFFORTS, help="how much the search for int8 tries")
    add_feeds(parser, "--calibration", "representative inputs")
    add_json(parser)
    parser.set_defaults(run=optimize)

    parser = commands.add_parser("compile", help="compile a model for a backend")
    parser.add_argument("model", metavar="MODEL", help="an .onnx file")
    parser.add_argument("-b", "--backend", help="such as openvino or openvino:GPU; default: the best here")
    parser.add_argument("--device", help="the device name within the backend")
    parser.add_argument("-o", "--output", type=new_path, metavar="OUT",
                        help="the directory to write (default: MODEL with .edge)")  # fmt: skip
    parser.add_argument("--untrusted", action="store_true",
                        help="read and compile it in a child process of limited time and memory")  # fmt: skip
    add_options(parser)
    add_json(parser)
    parser.set_defaults(run=compile_model)


def optimize(arguments: argparse.Namespace) -> None:
    """Optimize a model and write it."""
    import edgeinfer as ei

    model = ei.Model.load(arguments.model)
    calibration = feeds_of(arguments, model.signature)
    transforms = [parse_transform(text) for text in arguments.transform] if arguments.transform else None
    result = ei.optimize(
        model,
        transforms,
        target=arguments.target,
        calibration=calibration,
        min_sqnr_db=arguments.min_sqnr_db,
        effort=arguments.effort,
    )
    print_result(result, arguments)


def print_result(result: Model, arguments: argparse.Namespace) -> None:
    """Write an optimized model to `--output`, and print what was done to it."""
    path = result.save(arguments.output)
    if arguments.json:
        history = [
            {"name": entry.name, "applied": entry.applied, "skipped": entry.skipped, "notes": entry.notes}
            for entry in result.history
        ]
        print_json({"output": str(path), "digest": result.digest, "transforms": history})
    else:
        report = () if result.report is None else (result.report.table(),)
        print_table(*report, result.table())
        print_line(f"written to {path}")


def compile_model(arguments: argparse.Namespace) -> None:
    """Compile a model and save the artifact."""
    import edgeinfer as ei

    artifact = ei.compile(
        arguments.model,
        arguments.backend,
        device=arguments.device,
        options=option_values(arguments),
        limits=arguments.untrusted,
    )
    saved = artifact.save(arguments.output or Path(arguments.model).with_suffix(".edge"))
    if arguments.json:
        manifest = saved.manifest
        made = {"backend": manifest.backend, "device": manifest.device, "kind": manifest.kind}
        print_json({"output": str(saved.path), "digest": saved.digest, "bytes": saved.disk_bytes, **made})
    else:
        print_table(saved.table())


def parse_transform(text: str) -> Any:
    """Make a transform from its name, or from a call with literal arguments as it stands in Python.

    Raises:
        OptionsError: There is no such transform, or its arguments are refused.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise OptionsError(
            "That is not a transform.", expected="a name, or a call with literal arguments", found=text
        ) from error
    known = _transforms()
    if name not in known:
        raise OptionsError(f"There is no transform {name!r}.", expected=", ".join(known), found=text)
    try:
        return known[name](*positional, **named)
    except Exception as error:  # constructors raise what their converters raise
        raise OptionsError(f"{name} refuses its arguments: {error}", found=text) from error


def _transforms() -> dict[str, Any]:
    """Return the transforms by name: all that is public beside the contract itself."""
    from edgeinfer import transforms
    from edgeinfer.transforms import contract, pipeline

    found = {name: getattr(transforms, name) for name in transforms.__all__}
    return {
        name: value
        for name, value in found.items()
        if hasattr(value, "apply") and value.__module__ not in (contract.__name__, pipeline.__name__)
    }
