"""`tune`: from a budget to a model that fits."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeinfer import __version__
from edgeinfer.artifact.artifact import Artifact
from edgeinfer.atomic import scratch_folder
from edgeinfer.backends.protocol import Capabilities
from edgeinfer.backends.registry import get_backend, require_available
from edgeinfer.budget import Budget
from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.cpu_quota import usable_cpus
from edgeinfer.devices.profile import Target
from edgeinfer.display import shows_progress
from edgeinfer.errors import TuningError
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.runtime.machine import describe_machine
from edgeinfer.runtime.memory import memory
from edgeinfer.tuning.actions import Problem
from edgeinfer.tuning.advice import devices_that_fit
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.engine import Engine, Timer
from edgeinfer.tuning.fork_server import ForkServer, fork_server
from edgeinfer.tuning.inputs import (
    check_arguments,
    in_batches,
    keep_inputs,
    require_batches,
    require_one_shape,
)
from edgeinfer.tuning.journal import Journal
from edgeinfer.tuning.outcome import Facts, result_of
from edgeinfer.tuning.recipe import Recipe
from edgeinfer.tuning.remote_bench import RemoteBench
from edgeinfer.tuning.result import TuningResult
from edgeinfer.tuning.space import FLOAT, Space, narrow_sets, option_sets, precisions_of
from edgeinfer.tuning.state import State
from edgeinfer.tuning.targets import tune_each
from edgeinfer.tuning.turns import Bench

if TYPE_CHECKING:
    from edgeinfer.devices.remote.device import RemoteDevice

__all__ = ["tune"]

_FORMAT = 1


def tune(
    model: ModelSource,
    budget: Budget,
    *,
    target: Target | str | Sequence[Target | str],
    calibration: Any,
    evaluate: Callable[[Model], float] | None = None,
    minutes: float | None = None,
    journal: str | os.PathLike[str] | None = None,
    on: RemoteDevice | None = None,
    options: Mapping[str, Any] | None = None,
    batches: Sequence[int] = (),
    fix_shapes: bool = False,
    seed: int = 0,
    sampler: str = "built-in",
    progress: bool | None = None,
) -> TuningResult:
    """Find the most accurate version of a model that keeps a budget on a target.

    It makes candidates (pruned, quantized in several ways, with some layers in float, with other options of
    the runtime), looks how close their outputs are, times the best ones on the target in turns, and asks
    `evaluate` about those that are left. Each candidate is made and timed in a child process of its own: one
    that crashes, hangs or takes too much memory is a result among others. See docs/tuning.md.

    Args:
        model: The float model: a path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model.
        budget: The limits. Where none of them is on latency, memory, disk or power, the fastest candidate
            that keeps the others is the best one.
        target: Where it will run: a Target, a device profile, or a backend such as `"openvino:CPU"`. Of
            several, each is tuned for in an equal part of the time, and the result is that of the one that
            does best; its `others` are the others'.
        calibration: Representative feeds, as for `optimize`. Their shapes are those that are timed.
        evaluate: From a Model to a metric of which more is better. It runs in this process; compile what it
            is given with `edgeinfer.compile(model)`, which uses the target and the options of the candidate.
        minutes: How long tuning may take, about. None: as many candidates as is usual.
        journal: A file that everything is written to as it is found (JSON lines), beside which models are
            kept in a folder. A run that was interrupted goes on where it was, also after `kill -9`. None: a
            temporary one.
        on: A device of `devices.connect` to time on, instead of this machine.
        options: Options of the backend that all candidates have.
        batches: Sizes of the batch to choose from, such as `(1, 2, 4, 8)`, for a model whose batch is open.
            Limits on latency are for a request, which waits for all of its batch; of what is as accurate and
            keeps the limits, the best one has the most rows in a second. Empty: the batch of the feeds.
        fix_shapes: Fix the shapes of a model that leaves some open to those of the feeds, of which there must
            be one only. Some runtimes are much faster then; the result takes no other shapes, in `evaluate`
            neither.
        seed: Of all random choices: the same seed and journal give the same candidates.
        sampler: What proposes the next candidate: `"built-in"`, or `"optuna"` (needs `edgeinfer[optuna]`).
        progress: Say on stderr what is being done. None: in a terminal or a notebook.

    Returns:
        The result: `best`, the Pareto set, all candidates and why they lost; or, where no candidate keeps the
        budget, which limit it is and what would help.

    Raises:
        OptionsError: An argument does not fit, such as `max_drop` without `evaluate`, or `batches`
            for a model whose batch is fixed.
        BackendUnavailableError: The target's backend is not on this machine, and `on` is None.
        CalibrationError: There is no feed.
        TuningError: The journal is of another run or cannot be written, or the model cannot be prepared.
    """
    check_arguments(budget, evaluate, minutes, sampler)
    loaded = Model.load(model)
    feeds = as_calibration(calibration, loaded.signature)
    if not isinstance(target, (str, Target)):
        return tune_each(
            target,
            lambda one, part, own: tune(
                loaded,
                budget,
                target=one,
                calibration=feeds,
                evaluate=evaluate,
                minutes=part,
                journal=own,
                on=on,
                options=options,
                batches=batches,
                fix_shapes=fix_shapes,
                seed=seed,
                sampler=sampler,
                progress=progress,
            ),
            minutes=minutes,
            journal=journal,
        )
    parsed = Target.parse(target)
    backend = get_backend(parsed.backend)
    if on is None:
        require_available(backend)
    capabilities = backend.capabilities()
    fixed = dict(options or {})
    sizes = require_batches(batches, loaded.signature)
    cores = usable_cpus() if on is None else max(1, int(on.local().usable_cores))
    problem = Problem(
        budget=budget,
        space=Space(
            precisions=precisions_of(capabilities, parsed),
            options=option_sets(capabilities, parsed, cores, fixed),
            # They change the numbers, and those of a device that is elsewhere are not seen.
            narrow=narrow_sets(capabilities, parsed, fixed) if on is None else (),
            fixes=fix_shapes and require_one_shape(feeds, loaded.signature, sizes),
        ),
        seed=seed,
        seconds=None if minutes is None else 60.0 * minutes,
        evaluates=evaluate is not None,
        sampler=sampler,
        batches=sizes,
    )
    path = Path(journal) if journal is not None else scratch_folder() / "tuning.jsonl"
    folder = path.with_name(f"{path.name}.files")
    with Journal(path) as book:
        if sizes:
            feeds = feeds.batched(sizes[0])
        first, fingerprint = keep_inputs(loaded, feeds, folder)
        start = {
            "kind": "start",
            "format": _FORMAT,
            "version": __version__,
            "model": loaded.digest,
            "target": str(parsed),
            "budget": budget.to_dict(),
            "options": [dict(each) for each in problem.space.options],
            "precisions": list(problem.space.precisions),
            "feeds": fingerprint,
            "evaluates": problem.evaluates,
            "on": on.host if on is not None else None,
            "seed": seed,
            "sampler": sampler,
            **({"batches": list(sizes)} if sizes else {}),
            **({"narrow": list(problem.space.narrow)} if problem.space.narrow else {}),
            **({"fixes": True} if problem.space.fixes else {}),
        }
        _begin(book, start)
        shapes = {name: tuple(array.shape) for name, array in first.items()}
        say = _say if shows_progress(progress) else (lambda _: None)
        where = describe_machine() if on is None else f"{on.host}: {on.local().cpu.model}"
        load = _loader(folder, parsed)
        facts = Facts(
            target=str(parsed),
            where=where,
            devices=lambda candidate: devices_that_fit(load(candidate)[0], budget, shapes),
            shapes=shapes,
            open_sides=_open_sides(loaded),
            load=load,
            notes=tuple(feeds.notes),
        )
        with fork_server(folder) as server:
            with _timer(folder, parsed, capabilities, on, first, server) as timer:
                engine = Engine(
                    problem=problem,
                    journal=book,
                    folder=folder,
                    target=parsed,
                    evaluate=evaluate,
                    shapes=shapes,
                    timer=timer,
                    here=on is None,
                    peak_bytes=_peak_bytes(first, on),
                    on_action=say,
                    server=server,
                )
                state = engine.run()
            _require_float(state, problem)
            result = result_of(state, problem, facts)
            shown = result.baseline if result.chosen is None else result.best
            if on is None and shown.index not in state.layer_us:
                engine.time_layers(shown.index, shown.candidate)
        return result_of(State.of(book.records), problem, facts)


def _begin(book: Journal, start: Mapping[str, Any]) -> None:
    """Write the first record, or see that it is the same one.

    Raises:
        TuningError: The journal is of another run.
    """
    if not book.records:
        book.append(start)
        return
    before = book.records[0]
    other = [name for name in {**before, **start} if before.get(name) != start.get(name)]
    if other:
        raise TuningError(
            f"The journal is of another tuning run: {', '.join(other)} differ.",
            where=str(book.path),
            expected=", ".join(f"{name} {before.get(name)!r}"[:80] for name in other),
            found=", ".join(f"{name} {start.get(name)!r}"[:80] for name in other),
            hint="Give another journal, or the arguments of that run.",
        )


def _require_float(state: State, problem: Problem) -> None:
    """Refuse to say anything where the original model itself could not be run.

    Raises:
        TuningError: It could not.
    """
    made = state.made.get(problem.space.baselines()[FLOAT].model_key)
    timing = state.timings.get(FLOAT)
    for stage in (made, timing):
        if stage is not None and stage.outcome != "ok":
            raise TuningError(
                "The original model cannot be run on the target.",
                where=str(state.start.get("target")),
                found=f"{stage.outcome}: {stage.reason}",
            )


@contextlib.contextmanager
def _timer(
    folder: Path,
    target: Target,
    capabilities: Capabilities,
    on: RemoteDevice | None,
    feed: Mapping[str, np.ndarray],
    server: ForkServer | None,
) -> Iterator[Timer]:
    threads = (capabilities.threads_option,) if capabilities.threads_option else ()
    timer: Timer = (
        Bench(folder=folder, target=str(target), threads=threads, server=server)
        if on is None
        else RemoteBench(device=on, folder=folder, target=target, feed=feed)
    )
    try:
        yield timer
    finally:
        timer.close()


def _peak_bytes(
    feed: Mapping[str, np.ndarray], on: RemoteDevice | None
) -> Callable[[Artifact, int | None], int]:
    if on is not None:
        return lambda artifact, batch: on.memory(artifact, in_batches([feed], batch)[0], runs=3).peak_bytes
    return lambda artifact, batch: memory(artifact, in_batches([feed], batch), runs=3).peak_bytes


def _loader(folder: Path, target: Target) -> Callable[[Candidate], tuple[Model, Recipe]]:
    def load(candidate: Candidate) -> tuple[Model, Recipe]:
        recipe = Recipe.load(folder / f"{candidate.model_key}.recipe")
        model = Model.load(folder / f"{candidate.model_key}.onnx")
        return model.tuned_for(str(target), candidate.run_options), recipe

    return load


def _open_sides(model: Model) -> bool:
    """Whether an image input leaves height and width open."""
    return any(
        spec.shape is not None
        and len(spec.shape) == 4
        and not any(isinstance(d, int) for d in spec.shape[2:])
        for spec in model.signature.inputs
    )


def _say(text: str) -> None:
    sys.stderr.write(f"tuning: {text}\n")
