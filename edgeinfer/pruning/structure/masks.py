"""Handing a pruned model to a training loop, and taking the weights back.

`export_training(model, folder)` writes three files that need nothing of ours to be read:

- `weights.npz`: every float weight by its name in the graph;
- `masks.npz`: for every weight of a layer, which elements may be other than zero. A training loop multiplies
  weights (or gradients) by them;
- `groups.json`: the coupled channels, with the tensors, axes and positions of each, and what is locked, so
  that a regularizer can act on entire groups.

`import_weights(model, source)` puts trained weights back; zeros of the model stay zeros.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.errors import PreconditionError
from edgeinfer.graph.channels.groups import Dependencies, analyze
from edgeinfer.graph.channels.labels import is_weight
from edgeinfer.graph.initializers import constant, set_constant
from edgeinfer.graph.layers import find_layers
from edgeinfer.model.model import Model
from edgeinfer.npz import write_npz
from edgeinfer.pruning.structure.prepare import prepare

__all__ = ["TrainingFiles", "export_training", "import_weights"]

FORMAT = 1


@final
@attrs.frozen(kw_only=True)
class TrainingFiles:
    """Where `export_training` wrote."""

    weights: Path
    masks: Path
    groups: Path


def export_training(model: Model, folder: str | os.PathLike[str]) -> TrainingFiles:
    """Write weights, masks and the group map of a model; see the module's docstring.

    Args:
        model: Any model, pruned or not.
        folder: Made if it is not there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = TrainingFiles(
        weights=folder / "weights.npz", masks=folder / "masks.npz", groups=folder / "groups.json"
    )
    arrays = {name: constant(v) for name, v in model.ir.graph.initializers.items() if is_weight(v)}
    write_npz(files.weights, arrays)
    write_npz(files.masks, _masks(model))
    work = model.copy_ir()
    prepare(work)
    files.groups.write_text(json.dumps(_group_map(analyze(work.graph)), indent=1), encoding="utf-8")
    return files


def import_weights(
    model: Model, source: str | os.PathLike[str] | Mapping[str, np.ndarray], *, keep_zeros: bool = True
) -> Model:
    """Return the model with other weights of the same names and shapes.

    Args:
        model: The model that was exported.
        source: An `.npz` file, or arrays by name. Weights that are not in it stay.
        keep_zeros: Set to zero what is zero in a layer's weight of `model`, so that a sparsity pattern that
            training has blurred is kept.

    Raises:
        PreconditionError: A name is unknown, a shape differs, a value is not finite, or the file is none.
    """
    arrays = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    masks = _masks(model) if keep_zeros else {}
    work = model.copy_ir()
    for name, array in arrays.items():
        value = work.graph.initializers.get(name)
        if value is None or not is_weight(value):
            raise PreconditionError(
                "The model has no such weight.",
                where=name,
                expected="names as exported",
                hint="Import into the very model that was exported.",
            )
        shape = constant(value).shape
        if array.shape != shape or not np.isfinite(array).all():
            raise PreconditionError(
                "A weight does not fit.",
                where=name,
                expected=f"finite numbers of shape {shape}",
                found=f"shape {array.shape}" if array.shape != shape else "values that are not finite",
            )
        kept = array * masks[name] if name in masks else array
        set_constant(value, kept.astype(constant(value).dtype))
    return Model.from_ir(work, path=model.path)


def _masks(model: Model) -> dict[str, np.ndarray]:
    return {layer.weight.name or "": constant(layer.weight) != 0 for layer in find_layers(model.ir.graph)}


def _group_map(dependencies: Dependencies) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "groups": [attrs.asdict(group) for group in dependencies.groups],
        "locked": [entry._asdict() for entry in dependencies.locked],
    }


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise PreconditionError(
            f"The weights cannot be read: {error}", where=str(path), expected="an .npz file of plain arrays"
        ) from error
