"""`edgeinfer inspect`, `compare` and `demo`: the commands that look and change nothing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgeinfer.cli.console import Commands, add_json, print_json, print_line, print_report, print_table
from edgeinfer.cli.inputs import add_feeds, add_shapes, feeds_of, new_file, number, shape_values, whole_number

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("inspect", help="say what a model consists of and what it costs")
    parser.add_argument("model", metavar="MODEL", help="an .onnx file, or the directory of an artifact")
    parser.add_argument(
        "--nodes", type=whole_number(0), default=0, metavar="N", help="also list the N costliest nodes"
    )
    add_shapes(parser)
    add_json(parser)
    parser.set_defaults(run=inspect)

    parser = commands.add_parser("compare", help="say how close two models' answers are, layer by layer")
    parser.add_argument("a", metavar="A", help="the reference: an .onnx file or an artifact")
    parser.add_argument("b", metavar="B", help="the candidate, in the same forms")
    parser.add_argument("--target", help="where models run, instead of what they were made for")
    add_feeds(parser, "--feeds", "inputs")
    parser.add_argument("--threshold-db", type=number(), default=20.0, metavar="DB",
                        help="the SQNR below which a layer has gone wrong (default: 20)")  # fmt: skip
    parser.add_argument("--layers", action="store_true", help="list every layer")
    add_shapes(parser)
    add_json(parser)
    parser.set_defaults(run=compare)

    parser = commands.add_parser(
        "demo", help="tune a model, roll it out to agents on this machine, catch a bad release; write a page"
    )
    parser.add_argument("--small", action="store_true",
                        help="only optimize, compile, run and measure a small model")  # fmt: skip
    parser.add_argument("--devices", type=whole_number(12), default=20, metavar="N",
                        help="how many agents, at least 12 (default: 20)")  # fmt: skip
    parser.add_argument("--minutes", type=number(above=0), default=0.15, metavar="M",
                        help="how long to tune for each class, about (default: 0.15)")  # fmt: skip
    parser.add_argument("--html", type=new_file, metavar="FILE", default="edgeinfer-demo.html",
                        help="where to write the page (default: edgeinfer-demo.html)")  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=demo)


def inspect(arguments: argparse.Namespace) -> None:
    """Print the report on a model, or the manifest of an artifact."""
    if Path(arguments.model).is_dir():
        from edgeinfer.artifact.artifact import Artifact
        from edgeinfer.artifact.manifest import encode_manifest

        artifact = Artifact.open(arguments.model)
        if arguments.json:
            print_line(encode_manifest(artifact.manifest).decode())
        else:
            print_table(artifact.table())
        return
    import edgeinfer as ei

    report = ei.inspect(arguments.model, shapes=shape_values(arguments), batch=arguments.batch)
    print_report(report, arguments)
    if arguments.nodes and not arguments.json:
        print_table(report.node_table(arguments.nodes))


def compare(arguments: argparse.Namespace) -> None:
    """Print the comparison of two models or artifacts."""
    import edgeinfer as ei

    a, b = (ei.Artifact.open(p) if Path(p).is_dir() else ei.Model.load(p) for p in (arguments.a, arguments.b))
    report = ei.compare(
        a,
        b,
        feeds_of(arguments, a.signature),
        target=arguments.target,
        threshold_db=arguments.threshold_db,
        shapes=shape_values(arguments),
        batch=arguments.batch,
    )
    print_report(report, arguments)
    if arguments.layers and report.layers and not arguments.json:
        print_table(report.layer_table())


def demo(arguments: argparse.Namespace) -> None:
    """Run the mission from end to end, or the small demonstration."""
    if arguments.small:
        small_demo(arguments)
        return
    from edgeinfer.demo.mission import run_mission

    report = run_mission(
        devices=arguments.devices,
        minutes=arguments.minutes,
        say=lambda part: print(f"{part} …", file=sys.stderr),
    )
    page = report.save_html(arguments.html)
    if arguments.json:
        print_json(report.to_dict())
    else:
        print(f"{report}\n\nThe page with all pictures: {page.absolute()}")


def small_demo(arguments: argparse.Namespace) -> None:
    """Run the main job on a small model that comes with edgeinfer."""
    from edgeinfer.demo import run_demo

    report = run_demo()
    if arguments.json:
        print_json(report.to_dict())
    else:
        print_table(report.before.table(), report.steps_table(), report.table())
