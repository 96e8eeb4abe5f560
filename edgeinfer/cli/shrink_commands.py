"""`edgeinfer tune`, `quantize`, `prune` and `sensitivity`: making a model smaller."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeinfer.cli.build_commands import EFFORTS, print_result
from edgeinfer.cli.console import (
    Commands,
    add_json,
    add_options,
    option_values,
    print_json,
    print_line,
    print_report,
    print_table,
)
from edgeinfer.cli.inputs import add_feeds, feeds_of, new_file, new_path, number, whole_number
from edgeinfer.cli.limits import add_budget, budget_of
from edgeinfer.errors import BudgetError, OptionsError

if TYPE_CHECKING:
    from edgeinfer.feeds.feeds import Feeds
    from edgeinfer.model.model import Model

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("tune", help="find the version of a model that keeps a budget")
    parser.add_argument("model", metavar="MODEL", help="an .onnx file")
    parser.add_argument(
        "-o", "--output", required=True, type=new_file, metavar="OUT", help="the .onnx file to write"
    )
    parser.add_argument("--target", required=True, nargs="+",
                        help="a device profile, or a backend such as openvino:CPU; of several the "
                        "best one is taken")  # fmt: skip
    add_feeds(parser, "--calibration", "representative inputs")
    add_budget(parser)
    parser.add_argument(
        "--evaluate",
        metavar="MODULE:FUNCTION",
        help="from an edgeinfer.Model to a metric of which more is better; --max-drop is of this",
    )
    parser.add_argument("--minutes", type=number(above=0), help="how long tuning may take, about")
    parser.add_argument("--journal", type=new_file, metavar="FILE", help="go on from it where it is there")
    parser.add_argument("--on", metavar="URL", help="time on this device: ssh://user@host")
    parser.add_argument("--recipe", type=new_path, metavar="FOLDER", help="also write how the model was made")
    parser.add_argument("--html", type=new_file, metavar="FILE", help="also write the report as a page")
    parser.add_argument("--batches", nargs="+", type=whole_number(1), default=[], metavar="ROWS",
                        help="sizes of the batch to choose from (default: that of the feeds)")  # fmt: skip
    parser.add_argument("--fix-shapes", action="store_true",
                        help="fix open shapes to those of the samples; it takes no others then")  # fmt: skip
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--sampler", choices=("built-in", "optuna"), default="built-in",
                        help="what proposes the next candidate")  # fmt: skip
    add_options(parser)
    add_json(parser)
    parser.set_defaults(run=tune)

    parser = _writes(commands, "quantize", "make a model int8 for a target, within a tolerance")
    parser.add_argument("--min-sqnr-db", type=number(), metavar="DB", help="how close the outputs must stay")
    parser.add_argument("--effort", choices=EFFORTS, default="default", help="how much the search tries")
    parser.add_argument("--method", help="how ranges are found: minmax, percentile, entropy, mse, …")
    parser.add_argument("--keep-float", nargs="+", default=[], metavar="NODE", help="layers left in float")
    parser.set_defaults(run=quantize)

    parser = _writes(commands, "prune", "remove channels, or attention heads, and refit the rest")
    parser.add_argument("--keep-macs", type=number(above=0), metavar="PART",
                        help="the part of the multiply-accumulates to keep (default: 0.8)")  # fmt: skip
    parser.add_argument("--keep-heads", type=number(above=0), metavar="PART",
                        help="the part of the attention heads to keep, instead")  # fmt: skip
    parser.add_argument("--keep-nodes", nargs="+", default=[], metavar="NODE", help="layers left alone")
    parser.set_defaults(run=prune)

    parser = commands.add_parser("sensitivity", help="say what each layer costs in accuracy when it is int8")
    parser.add_argument("model", metavar="MODEL", help="an .onnx file")
    parser.add_argument("--target", help="a device profile, or a backend such as openvino")
    add_feeds(parser, "--calibration", "representative inputs")
    parser.add_argument(
        "--samples", type=whole_number(1), default=16, help="feeds that outputs are judged on"
    )
    add_json(parser)
    parser.set_defaults(run=sensitivity)


def _writes(commands: Commands, name: str, what: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what)
    parser.add_argument("model", metavar="MODEL", help="an .onnx file")
    parser.add_argument(
        "-o", "--output", required=True, type=new_file, metavar="OUT", help="the .onnx file to write"
    )
    parser.add_argument("--target", help="a device profile, or a backend such as openvino")
    add_feeds(parser, "--calibration", "representative inputs")
    add_json(parser)
    return parser


def tune(arguments: argparse.Namespace) -> None:
    """Tune a model, and write the best version of it."""
    import edgeinfer as ei

    budget = budget_of(arguments)
    model, feeds = _inputs(arguments)
    result = ei.tune(
        model,
        budget,
        target=arguments.target if len(arguments.target) > 1 else arguments.target[0],
        calibration=feeds,
        evaluate=_function(arguments.evaluate) if arguments.evaluate else None,
        minutes=arguments.minutes,
        journal=arguments.journal,
        on=ei.devices.connect(arguments.on) if arguments.on else None,
        options=option_values(arguments),
        batches=arguments.batches,
        fix_shapes=arguments.fix_shapes,
        seed=arguments.seed,
        sampler=arguments.sampler,
    )
    if arguments.html:
        result.save_html(arguments.html)
    if arguments.json:
        print_json(result.to_dict())
    else:
        print_table(result.table())
    if not result.met:
        raise BudgetError(
            "No candidate keeps the budget; no model is written.",
            found="; ".join(each.limit for each in result.advice if each.limit) or None,
        )
    path = result.best.model.save(arguments.output)
    if arguments.recipe:
        result.best.recipe.save(arguments.recipe)
    if not arguments.json:
        print_line(f"written to {path}")


def quantize(arguments: argparse.Namespace) -> None:
    """Quantize a model and write it."""
    import edgeinfer as ei
    from edgeinfer.transforms import FuseBatchNorm, QuantizeInt8, Simplify

    model, feeds = _inputs(arguments)
    transform = QuantizeInt8(
        min_sqnr_db=arguments.min_sqnr_db,
        effort=arguments.effort,
        method=arguments.method,
        keep_float=arguments.keep_float,
    )
    steps = (Simplify(widen_weights=True), FuseBatchNorm(), transform)
    print_result(ei.optimize(model, steps, target=arguments.target, calibration=feeds), arguments)


def prune(arguments: argparse.Namespace) -> None:
    """Prune a model and write it."""
    import edgeinfer as ei
    from edgeinfer.transforms import FuseBatchNorm, PruneChannels, PruneHeads, Simplify

    if arguments.keep_macs is not None and arguments.keep_heads is not None:
        raise OptionsError("Channels or heads, not both.", expected="--keep-macs or --keep-heads")
    model, feeds = _inputs(arguments)
    step: Any = (
        PruneHeads(keep=arguments.keep_heads, keep_nodes=arguments.keep_nodes)
        if arguments.keep_heads is not None
        else PruneChannels(
            keep_macs=0.8 if arguments.keep_macs is None else arguments.keep_macs,
            keep_nodes=arguments.keep_nodes,
        )
    )
    steps = (Simplify(widen_weights=True), FuseBatchNorm(), step)
    print_result(ei.optimize(model, steps, target=arguments.target, calibration=feeds), arguments)


def sensitivity(arguments: argparse.Namespace) -> None:
    """Print the table of layers."""
    import edgeinfer as ei
    from edgeinfer.transforms import FuseBatchNorm, Simplify

    model, feeds = _inputs(arguments)
    prepared = ei.optimize(model, (Simplify(widen_weights=True), FuseBatchNorm()))
    report = ei.sensitivity(prepared, feeds, target=arguments.target, samples=arguments.samples)
    print_report(report, arguments)


def _inputs(arguments: argparse.Namespace) -> tuple[Model, Feeds]:
    import edgeinfer as ei

    model = ei.Model.load(arguments.model)
    feeds = feeds_of(arguments, model.signature)
    if feeds is None:
        raise OptionsError(
            "Representative inputs are needed.",
            expected="--calibration PATH, or --images PATH --preprocessing FILE",
        )
    return model, feeds


def _function(text: str) -> Callable[[Model], float]:
    """Return the function that `MODULE:FUNCTION` names; modules of the current folder are found.

    Raises:
        OptionsError: There is no such function.
    """
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise OptionsError("That is no function.", expected="MODULE:FUNCTION", found=text)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (an entry of sys.path is a text)
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise anything when it is imported
        raise OptionsError(f"The function cannot be imported: {error}", found=text) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise OptionsError("That is no function.", expected="MODULE:FUNCTION", found=text)
    function: Callable[[Model], float] = found
    return function
