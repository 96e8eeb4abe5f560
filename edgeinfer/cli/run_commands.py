"""`edgeinfer run` and `bench`: the commands that run a model."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeinfer.cli.console import (
    Commands,
    add_json,
    add_options,
    add_shapes,
    option_values,
    print_json,
    print_table,
    shape_values,
)
from edgeinfer.errors import InputError, OptionsError, SessionError

if TYPE_CHECKING:
    from edgeinfer.artifact.artifact import Artifact
    from edgeinfer.artifact.signature import Signature
    from edgeinfer.runtime.session import Session

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("run", help="run an artifact or a model once")
    _add_source(parser)
    parser.add_argument("--input", action="append", default=[], metavar="NAME=FILE",
                        help="an input from an .npy file, or all from one .npz file; may be repeated; "
                        "without any, inputs are made up")  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="the .npz file to write the outputs to")
    add_json(parser)
    parser.set_defaults(run=run)

    parser = commands.add_parser("bench", help="measure latency, and memory if asked")
    _add_source(parser)
    parser.add_argument("--feeds", metavar="PATH", help="inputs: an .npz or .npy file, or a folder of them")
    parser.add_argument("--runs", type=int, metavar="N", help="how many inferences to measure")
    parser.add_argument("--seconds", type=float, metavar="S", help="how long to measure (default: 2)")
    parser.add_argument("--warmup", type=int, default=10, metavar="N", help="runs beforehand (default: 10)")
    parser.add_argument("--bound", action="store_true", help="measure the bound mode, without allocation")
    parser.add_argument("--loadgen", action="store_true", help="use MLPerf's load generator (SingleStream)")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, in a child process")
    parser.add_argument("--execution", action="store_true", help="also say what precision each layer ran in")
    add_json(parser)
    parser.set_defaults(run=bench)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="ARTIFACT", help="the directory of an artifact, or an .onnx file")
    parser.add_argument("-b", "--backend", help="for an .onnx file: the backend to compile it for")
    parser.add_argument("--device", help="the device name within the backend")
    add_options(parser)
    add_shapes(parser)


def _artifact(arguments: argparse.Namespace) -> Artifact:
    import edgeinfer as ei

    if not Path(arguments.source).is_dir() and Path(arguments.source).exists():
        return ei.compile(arguments.source, arguments.backend, device=arguments.device)
    if arguments.backend is not None:
        raise OptionsError(
            "An artifact is compiled already; its backend cannot be chosen.",
            where=arguments.source,
            hint="Leave --backend out, or give the .onnx file.",
        )
    return ei.Artifact.open(arguments.source)


@contextlib.contextmanager
def _session(artifact: Artifact, arguments: argparse.Namespace) -> Iterator[Session]:
    import edgeinfer as ei

    with ei.load(artifact, device=arguments.device, options=option_values(arguments)) as session:
        yield session


def run(arguments: argparse.Namespace) -> None:
    """Run once and print what came out."""
    from edgeinfer.display import Table
    from edgeinfer.feeds.generate import generate_feeds

    artifact = _artifact(arguments)
    feed = _inputs(arguments.input, artifact.signature)
    if not feed:
        feed = generate_feeds(artifact.signature, shapes=shape_values(arguments))[0]
    with _session(artifact, arguments) as session:
        outputs = session.infer(feed)
        latency_ms = float(session.latencies_ms[-1])
    if arguments.output:
        _save(arguments.output, outputs)
    if arguments.json:
        described = {
            name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in outputs.items()
        }
        print_json({"outputs": described, "latency_ms": latency_ms, "written": arguments.output})
        return
    rows = [(name, str(array.dtype), str(array.shape), *_extent(array)) for name, array in outputs.items()]
    lines = [f"{latency_ms:.3f} ms"]
    if not arguments.input:
        lines.append("made-up inputs")
    if arguments.output:
        lines.append(f"written to {arguments.output}")
    table = Table(
        title=f"Outputs of {arguments.source}",
        columns=("output", "dtype", "shape", "min", "max", "argmax of the first row"),
        rows=rows,
        footer="; ".join(lines),
    )
    print_table(table)


def _extent(array: np.ndarray) -> tuple[str, str, str]:
    if not array.size or array.dtype.kind not in "fiub":
        return "", "", ""
    top = str(array[0].argmax()) if array.ndim == 2 else ""
    return f"{array.min():.6g}", f"{array.max():.6g}", top


def _inputs(given: list[str], signature: Signature) -> dict[str, np.ndarray]:
    from edgeinfer.cli.feeds import read_array, read_arrays
    from edgeinfer.npz import as_spec

    feed: dict[str, np.ndarray] = {}
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.optional)}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals:
            feed |= read_arrays(Path(text), signature)
        elif name not in specs:
            raise InputError(
                f"The model has no input {name!r}.",
                expected=", ".join(specs),
                found=text,
            )
        else:
            feed[name] = as_spec(read_array(Path(file)), specs[name])
    return feed


def _save(path: str, outputs: dict[str, np.ndarray]) -> None:
    from edgeinfer.npz import write_npz

    try:
        with Path(path).open("wb") as file:
            write_npz(file, outputs)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SessionError(f"The outputs cannot be written: {reason}.", where=path) from error


def bench(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    from edgeinfer.cli.feeds import read_feeds
    from edgeinfer.measure import benchmark, execution, memory

    artifact = _artifact(arguments)
    feeds = read_feeds(arguments.feeds, artifact.signature) if arguments.feeds else None
    shapes = shape_values(arguments)
    with _session(artifact, arguments) as session:
        timing = benchmark(
            session,
            feeds,
            warmup=arguments.warmup,
            runs=arguments.runs,
            seconds=arguments.seconds,
            bound=arguments.bound,
            loadgen=arguments.loadgen,
            shapes=shapes,
        )
        ran = execution(session) if arguments.execution else None
    feed = next(iter(feeds)) if feeds is not None else None
    peak = None
    if arguments.memory:
        peak = memory(
            artifact, feed, shapes=shapes, device=arguments.device, options=option_values(arguments)
        )
    if arguments.json:
        print_json(
            timing.to_dict()
            | ({"memory": peak.to_dict()} if peak else {})
            | ({"execution": ran.to_dict()} if ran else {})
        )
    else:
        print_table(*(report.table() for report in (timing, peak, ran) if report is not None))
