"""The TensorRT backend on a real GPU, in one command and under nine minutes.

    python benchmarks/gpu/run.py --models DIR --out DIR [--torch-python python3] [--ort-python python3]
    python benchmarks/gpu/run.py --models DIR --out DIR --part host        # plain `infer` beside bound
    python benchmarks/gpu/run.py --models DIR --out DIR --part precisions  # what pays where
    python benchmarks/gpu/run.py --models DIR --out DIR --part peers       # PyTorch, ONNX Runtime CUDA

Parts, the most important first: checks of the running path and the conformance suite; the copies on the host;
every precision of ResNet-50 and MobileNetV2 beside PyTorch; every other model. float32 is without TF32 on all
sides. Every step stands alone: what fails is printed with its reason, and the next one runs. Results are
appended to `results.jsonl` at once; `table.txt` is written at the end.

`--samples DIR` has real inputs as `NAME.npz`: `calibration` and `evaluation` (N, C, H, W), to be multiplied
by `scale` and moved by `shift`, and `labels` (N,).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

from checks import check_running, conformance_checks, options_for_flavour
from host_copies import MODELS as HOST_MODELS
from host_copies import SECONDS, host_part, host_table
from model_table import measure, peer, prepared, table
from models import ONE_AT_A_TIME, PRECISIONS, available, open_model
from precisions import VARIANTS, Prepared, precision_part, precision_table, prepare_part
from results import Results

from edgeinfer.backends.tensorrt_.cuda import find_gpus
from edgeinfer.backends.tensorrt_.flavours import find_flavours

PARTS = ("checks", "host", "peers", "precisions", "models")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0, help="begin no step after that")
    parser.add_argument("--samples", type=Path, help="real inputs for calibration and judging")
    parser.add_argument("--prepared", type=Path, help="where models in each precision are kept between runs")
    parser.add_argument("--scratch", type=Path, help="where engines and timings are kept between runs")
    parser.add_argument("--torch-python", default=sys.executable, help="the interpreter that has PyTorch")
    parser.add_argument("--ort-python", default=sys.executable, help="the one that has onnxruntime-gpu")
    parser.add_argument("--only", default="", help="names of models, separated by commas")
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--batches", default="1,32", help="of precisions and peers, separated by commas")
    parser.add_argument("--peers", default="torch,onnxruntime cuda", help="which, separated by commas")
    parser.add_argument("--peer-seconds", type=float, default=60, help="for each of them")
    parser.add_argument("--variants", default="", help="of `precisions`, separated by semicolons; all")
    parser.add_argument("--tactic-sources", default="", help="of TensorRT 8, separated by commas")
    given = parser.parse_args()
    parts = PARTS if given.part == "all" else (given.part,)
    results = Results(given.out, given.minutes, given.scratch)
    names = [n for n in available(given.models) if not given.only or n in given.only.split(",")]
    gpus, reason = find_gpus()
    results.add(step="environment", flavours=list(map(str, find_flavours())), gpus=gpus, reason=reason)
    if not gpus:
        sys.exit(f"{reason}. This benchmark needs an NVIDIA GPU.")
    sources = tuple(filter(None, given.tactic_sources.split(",")))
    options = {} if parts == ("peers",) else options_for_flavour(sources)
    chosen = [name for name in names if given.only or name in HOST_MODELS]
    batches = tuple(map(int, given.batches.split(",")))
    folder = given.prepared or results.scratch / "prepared"
    if "checks" in parts:
        results.step(lambda: conformance_checks(results, options), step="conformance process")
        check_running(results, options)
    if "host" in parts:
        seconds = SECONDS if given.part == "host" else SECONDS / 4
        host_part(results, given.models, chosen, options, seconds)
        finish(results, host_table(results.rows))
    if {"peers", "precisions"} & {*parts}:
        models = prepare_part(results, given.models, chosen, given.samples, folder)
        if "peers" in parts:
            peer_part(results, given, models)
        if "precisions" in parts:
            chosen_variants = tuple(filter(None, given.variants.split(";")))
            precision_part(results, models, options, batches, chosen_variants or tuple(VARIANTS))
        finish(results, precision_table(results.rows))
    if "models" in parts:
        rest = [name for name in names if name not in chosen] if given.part == "all" else names
        model_part(results, given, rest, options)
    finish(results, "\n".join((host_table(results.rows), precision_table(results.rows), table(results.rows))))


def peer_part(results: Results, given: argparse.Namespace, models: Mapping[str, Prepared]) -> None:
    """The same models in PyTorch and ONNX Runtime, at the same batches."""
    pythons = {"torch": given.torch_python, "onnxruntime cuda": given.ort_python}
    files = {
        name: {precision: model.files[precision, False] for precision in ("float32", "float16")}
        for name, model in models.items()
    }
    single = {name: paths for name, paths in files.items() if name in ONE_AT_A_TIME}
    groups = [({name: files[name] for name in files if name not in single}, given.batches), (single, "1")]
    for (group, batches), step in itertools.product(groups, given.peers.split(",")):
        more = ("--batches", batches, *(("--compile",) if step == "torch" else ()))
        if group:
            results.step(
                lambda step=step, more=more, group=group: peer(
                    results, step, pythons[step], group, given.peer_seconds, more
                ),
                step=f"{step} process",
            )


def model_part(
    results: Results, given: argparse.Namespace, names: list[str], options: dict[str, object]
) -> None:
    """Every model in each precision at batch 1, beside the peers: their share of the time is known."""
    files = prepared(results, given.models, names)
    for step, python in (("torch", given.torch_python), ("onnxruntime cuda", given.ort_python)):
        seconds = min(given.peer_seconds, results.left_s / 4)
        results.step(
            lambda step=step, python=python, seconds=seconds: peer(results, step, python, files, seconds),
            step=f"{step} process",
        )
    for name in names:
        model = open_model(given.models, name)
        for precision in PRECISIONS:
            measure(results, name, model, precision, options, results.scratch / "cache")
            (given.out / "table.txt").write_text(table(results.rows))


def finish(results: Results, text: str) -> None:
    (results.out / "table.txt").write_text(text)
    print(text)
    failed = [row for row in results.rows if "error" in row]
    print(f"{len(results.rows)} steps, {len(failed)} failed", flush=True)


if __name__ == "__main__":
    main()
