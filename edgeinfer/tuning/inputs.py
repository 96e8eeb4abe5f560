"""What a tuning run is given: checked, and kept in a folder beside the journal for the child processes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.budget import Budget
from edgeinfer.errors import CalibrationError, OptionsError, TuningError
from edgeinfer.feeds.batch import every_input_is_batched, fixed_batch
from edgeinfer.feeds.feeds import Feeds
from edgeinfer.model.model import Model
from edgeinfer.npz import write_npz
from edgeinfer.tuning.actions import SAMPLERS
from edgeinfer.tuning.optuna_sampler import require_optuna

__all__ = ["check_arguments", "in_batches", "keep_inputs", "require_batches", "require_one_shape"]


def keep_inputs(model: Model, feeds: Feeds, folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """Write the model and the feeds where the child processes find them; once, unless they changed.

    Returns:
        The first feed, and the SHA-256 of all.
    """
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    first: dict[str, np.ndarray] | None = None
    digest = hashlib.sha256()
    try:
        draft.mkdir(parents=True)
        for number, feed in enumerate(feeds):
            first = first or feed
            file = draft / f"{number:06d}.npz"
            write_npz(file, feed)
            digest.update(file.read_bytes())
        if first is None:
            raise CalibrationError("There is no feed.", where=feeds.what, expected="at least one")
        fingerprint = digest.hexdigest()
        kept = folder / "feeds"
        mark = folder / "feeds.sha256"
        if not (mark.is_file() and mark.read_text() == fingerprint and kept.is_dir()):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
            draft.rename(kept)
            model.save(folder / "original.onnx")
            mark.write_text(fingerprint)
    except OSError as error:
        raise TuningError(
            f"The feeds cannot be kept: {error.strerror or error}.", where=str(folder)
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return first, fingerprint


def require_batches(batches: Sequence[int], signature: Signature) -> tuple[int, ...]:
    """Return sizes of the batch, the smallest first.

    Raises:
        OptionsError: One is no size, or the model takes one size only.
    """
    if any(isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1 for size in batches):
        raise OptionsError("A batch is out of range.", expected="integers from 1", found=list(batches))
    if batches and not every_input_is_batched(signature):
        fixed = fixed_batch(signature)
        raise OptionsError(
            "The batch of the model cannot be chosen.",
            where="batches",
            expected="a model of which the first axis of each input is an open batch",
            found=f"a batch of {fixed}" if fixed is not None else str(signature),
            hint="Export the model with an open batch, or leave `batches` out: that of the feeds counts.",
        )
    return tuple(sorted({int(size) for size in batches}))


def require_one_shape(feeds: Feeds, signature: Signature, batches: Sequence[int]) -> bool:
    """Return whether there is a shape to fix: False where the model leaves none open.

    Raises:
        OptionsError: Feeds have several shapes, or the batch is to be chosen, too.
    """
    if batches:
        raise OptionsError(
            "Either shapes are fixed, or the batch is chosen.",
            where="fix_shapes, batches",
            hint="Leave `batches` out, and give feeds with the batch that you want.",
        )
    found = {tuple(sorted((name, array.shape) for name, array in feed.items())) for feed in feeds}
    if len(found) > 1:
        raise OptionsError(
            "Shapes cannot be fixed to those of the feeds: these have several.",
            where="fix_shapes",
            expected="feeds of one shape",
            found=", ".join(str(dict(shapes)) for shapes in sorted(found, key=repr)[:3]),
            hint="Pad the feeds to one shape, as your application would, or leave `fix_shapes` out.",
        )
    return any(
        spec.shape is None or not all(isinstance(size, int) for size in spec.shape)
        for spec in signature.inputs
    )


def in_batches(feeds: Sequence[Mapping[str, np.ndarray]], size: int | None) -> list[dict[str, np.ndarray]]:
    """Return feeds of so many rows, whose rows are those of the given feeds, again and again if they are few.

    Args:
        feeds: At least one. Those with other shapes than the first, but for the rows, are left out.
        size: The rows of each; None: they are returned as they are.
    """
    if size is None:
        return [dict(feed) for feed in feeds]
    shape = {name: array.shape[1:] for name, array in feeds[0].items()}
    alike = [feed for feed in feeds if all(feed[name].shape[1:] == shape[name] for name in shape)]
    rows = {name: np.concatenate([feed[name] for feed in alike]) for name in shape}
    count = len(next(iter(rows.values())))
    return [
        {name: array.take(range(start, start + size), axis=0, mode="wrap") for name, array in rows.items()}
        for start in range(0, count, size)
    ]


def check_arguments(
    budget: Budget, evaluate: Callable[[Model], float] | None, minutes: float | None, sampler: str
) -> None:
    """Refuse arguments of `tune` that do not fit.

    Raises:
        OptionsError: They do not.
    """
    if sampler not in SAMPLERS:
        raise OptionsError("There is no such sampler.", expected=" or ".join(SAMPLERS), found=sampler)
    if sampler == "optuna":
        require_optuna()
    if budget.max_drop is not None and evaluate is None:
        raise OptionsError(
            "max_drop is a limit on your metric, and there is none.",
            expected="evaluate=..., from a Model to a number of which more is better",
            hint="Without a metric, limit min_sqnr_db instead.",
        )
    if minutes is not None and not 0 < minutes < 1e6:
        raise OptionsError("minutes is out of range.", expected="a number above 0", found=minutes)
