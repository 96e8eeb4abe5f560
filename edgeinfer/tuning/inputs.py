"""What the child processes of a tuning run read: the model and the feeds, in a folder beside the journal."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np

from edgeinfer.errors import CalibrationError, TuningError
from edgeinfer.feeds.feeds import Feeds
from edgeinfer.model.model import Model
from edgeinfer.npz import write_npz

__all__ = ["keep_inputs"]


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
