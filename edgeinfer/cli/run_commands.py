"""`edgeinfer run` and `bench`: the commands that run a model."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeinfer.atomic import write_file
from edgeinfer.cli.console import Commands, add_json, add_options, option_values, print_json, print_table
from edgeinfer.cli.inputs import add_feeds, add_shapes, feeds_of, new_file, number, shape_values, whole_number
from edgeinfer.errors import InputError, OptionsError, SessionError
from edgeinfer.npz import write_npz

if TYPE_CHECKING:
    from edgeinfer.artifact.artifact import Artifact
    from edgeinfer.artifact.signature import Signature
    from edgeinfer.feeds.feeds import Feeds
    from edgeinfer.runtime.session import Session

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("run", help="run an artifact or a model once")
    parser.add_argument("source", metavar="ARTIFACT", help="the directory of an artifact, or an .onnx file")
    _add_backend(parser)
    parser.add_argument("--input", action="append", default=[], metavar="NAME=FILE",
                        help="an input from an .npy file, or all from one .npz file; may be repeated; "
                        "without any, inputs are made up")  # fmt: skip
    parser.add_argument(
        "--output", type=new_file, metavar="FILE", help="the .npz file to write the outputs to"
    )
    add_json(parser)
    parser.set_defaults(run=run)

    parser = commands.add_parser("bench", help="measure latency, and memory if asked")
    parser.add_argument("sources", nargs="+", metavar="ARTIFACT",
                        help="the directory of an artifact, or an .onnx file; several are measured in turns "
                        "and compared with the first")  # fmt: skip
    _add_backend(parser)
    add_feeds(parser, "--feeds", "inputs")
    parser.add_argument("--runs", type=whole_number(1), metavar="N", help="how many inferences to measure")
    parser.add_argument("--seconds", type=number(above=0), metavar="S",
                        help="how long to measure (default: 2)")  # fmt: skip
    parser.add_argument("--warmup", type=whole_number(0), default=10, metavar="N",
                        help="runs beforehand (default: 10)")  # fmt: skip
    parser.add_argument("--bound", action="store_true", help="measure the bound mode, without allocation")
    parser.add_argument("--loadgen", action="store_true", help="use MLPerf's load generator (SingleStream)")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, in a child process")
    parser.add_argument("--execution", action="store_true", help="also say what precision each layer ran in")
    add_json(parser)
    parser.set_defaults(run=bench)


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-b", "--backend", help="for an .onnx file: the backend to compile it for")
    parser.add_argument("--device", help="the device name within the backend")
    add_options(parser)
    add_shapes(parser)


def _artifact(source: str, arguments: argparse.Namespace) -> Artifact:
    import edgeinfer as ei

    if not Path(source).is_dir() and Path(source).exists():
        return ei.compile(source, arguments.backend, device=arguments.device)
    if arguments.backend is not None:
        raise OptionsError(
            "An artifact is compiled already; its backend cannot be chosen.",
            where=source,
            hint="Leave --backend out, or give the .onnx file.",
        )
    return ei.Artifact.open(source)


def _session(artifact: Artifact, arguments: argparse.Namespace) -> Session:
    import edgeinfer as ei

    return ei.load(artifact, device=arguments.device, options=option_values(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Run once and print what came out."""
    from edgeinfer.display import Table
    from edgeinfer.feeds.choose import choose_feeds
    from edgeinfer.feeds.shapes import describe_inputs

    artifact = _artifact(arguments.source, arguments)
    feed = _inputs(arguments.input, artifact.signature)
    said = ""
    if not feed:
        chosen = choose_feeds(None, artifact.signature, shapes=shape_values(arguments), batch=arguments.batch)
        feed, said = chosen.feeds[0], f"made-up inputs: {describe_inputs(chosen.inputs)}"
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
    if said:
        lines.append(said)
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
    from edgeinfer.feeds.files import read_array, read_file
    from edgeinfer.npz import with_dtype

    names = [spec.name for spec in signature.inputs]
    feed: dict[str, np.ndarray] = {}
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.optional)}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals:
            optional = [spec.name for spec in signature.optional]
            found = read_file(Path(text), names, optional=optional)
            feed |= found if isinstance(found, dict) else {names[0]: found}
        elif name not in specs:
            raise InputError(f"The model has no input {name!r}.", expected=", ".join(specs), found=text)
        else:
            feed[name] = read_array(Path(file))
    return {
        name: with_dtype(array, specs[name].dtype) if name in specs else array for name, array in feed.items()
    }


def _save(path: str, outputs: dict[str, np.ndarray]) -> None:
    try:
        write_arrays(Path(path), outputs)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise SessionError(
            f"The outputs cannot be written: {getattr(error, 'strerror', None) or error}.",
            where=path,
            expected="a place in a folder that exists, is writable and has room",
            found=f"{sum(array.nbytes for array in outputs.values()) / 1e6:.1f} MB to write",
            hint="A file that was there before is as it was.",
        ) from error


def bench(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    if len(arguments.sources) > 1:
        _bench_in_turns(arguments)
        return
    from edgeinfer.measure import benchmark, execution, memory

    artifact = _artifact(arguments.sources[0], arguments)
    feeds = _feeds(arguments, artifact)
    what = {"shapes": shape_values(arguments), "batch": arguments.batch}
    with _session(artifact, arguments) as session:
        timing = benchmark(
            session,
            feeds,
            warmup=arguments.warmup,
            runs=arguments.runs,
            seconds=arguments.seconds,
            bound=arguments.bound,
            loadgen=arguments.loadgen,
            **what,
        )
        ran = execution(session) if arguments.execution else None
    peak = None
    if arguments.memory:
        peak = memory(artifact, feeds, device=arguments.device, options=option_values(arguments), **what)
    if arguments.json:
        print_json(
            timing.to_dict()
            | ({"memory": peak.to_dict()} if peak else {})
            | ({"execution": ran.to_dict()} if ran else {})
        )
    else:
        print_table(*(report.table() for report in (timing, peak, ran) if report is not None))


def _feeds(arguments: argparse.Namespace, artifact: Artifact) -> Feeds | None:
    """Return the feeds; without a size of the batch the rows of one file are run one at a time."""
    feeds = feeds_of(arguments, artifact.signature)
    sized = arguments.batch is not None or arguments.shape
    return feeds if feeds is None or sized else feeds.row_by_row()


def _bench_in_turns(arguments: argparse.Namespace) -> None:
    from edgeinfer.measure import benchmark_in_turns

    alone = [name for name in ("loadgen", "memory", "execution") if getattr(arguments, name)]
    if alone:
        raise OptionsError(f"--{alone[0]} is for one artifact.", found=", ".join(arguments.sources))
    with contextlib.ExitStack() as stack:
        sessions = {}
        feeds = None
        for index, source in enumerate(arguments.sources):
            artifact = _artifact(source, arguments)
            feeds = _feeds(arguments, artifact) if index == 0 else feeds
            name = source if source not in sessions else f"{source} ({index + 1})"
            sessions[name] = stack.enter_context(_session(artifact, arguments))
        report = benchmark_in_turns(
            sessions,
            feeds,
            warmup=arguments.warmup,
            runs=arguments.runs,
            seconds=arguments.seconds,
            bound=arguments.bound,
            shapes=shape_values(arguments),
            batch=arguments.batch,
        )
    if arguments.json:
        print_json(report.to_dict())
    else:
        print_table(report.table())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an `.npz` file by their names: all of them, or the file stays as it was.

    Raises:
        OSError: It cannot be written.
    """
    write_file(path, lambda file: write_npz(file, arrays))
