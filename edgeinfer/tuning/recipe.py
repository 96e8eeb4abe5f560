"""`Recipe`: how a model was made, as decisions that are replayed and never made again.

A folder of two files. `recipe.json` has the steps: the transform's name and settings, what it decided (the
layers that stay in float, ranges, channels kept), the difference that it made to the graph, and the digest of
the model after it. `tensors.bin` has the weights that were computed, each under its SHA-256.

Replaying takes the original model and the two files; no data, no measuring, no arithmetic. So it gives the
same model, bit for bit, on any machine, and each step's digest is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.artifact.decode import decode
from edgeinfer.atomic import open_regular, write_folder
from edgeinfer.display import Table
from edgeinfer.errors import RecipeError
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.model.plain_config import plain_config
from edgeinfer.model.transform_report import TransformReport
from edgeinfer.plain_json import parse_json
from edgeinfer.quantization.qdq.marks import ranges_of
from edgeinfer.transforms.contract import Transform
from edgeinfer.transforms.pipeline import Pipeline
from edgeinfer.tuning.graph_delta import diff, patch
from edgeinfer.values import as_tuple

__all__ = ["Recipe", "Step"]

_FORMAT = 1
_JSON, _TENSORS = "recipe.json", "tensors.bin"


@final
@attrs.frozen(kw_only=True)
class Step:
    """One transform that changed the model.

    Attributes:
        name: The transform's class name.
        settings: Its settings, without data.
        decisions: What it decided, for people: `channels`, `float_layers`, `ranges`, `notes`.
        digest: The model's digest after it.
        delta: The difference that it made (`graph_delta`).
    """

    name: str
    settings: Mapping[str, Any]
    decisions: Mapping[str, Any]
    digest: str
    delta: Mapping[str, Any] = attrs.field(repr=False)


@final
@attrs.frozen(kw_only=True)
class Recipe:
    """The steps from one model to another.

    Attributes:
        base: The digest of the model that it starts from.
        steps: What is done to it, in order.
        tensors: The bytes of the weights that were computed, by their SHA-256.
    """

    base: str
    steps: tuple[Step, ...] = attrs.field(converter=as_tuple)
    tensors: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """The digest of the model that it makes."""
        return self.steps[-1].digest if self.steps else self.base

    @classmethod
    def record(cls, model: Model, transforms: Iterable[Transform]) -> tuple[Model, Recipe]:
        """Apply transforms, and write down what each did.

        Args:
            model: The model to start from.
            transforms: What to apply, in order.

        Returns:
            The new model and the recipe, which `apply` replays.

        Raises:
            TransformError: A transform cannot be applied.
        """
        steps: list[Step] = []
        tensors: dict[str, bytes] = {}
        current = model
        for transform in transforms:
            after, report = Pipeline((transform,)).apply(current)
            if after.digest == current.digest:
                continue
            step = report.steps[-1]
            steps.append(
                Step(
                    name=step.name,
                    settings=plain_config(step.config),
                    decisions=_decisions(current, after, report.steps),
                    digest=after.digest,
                    delta=diff(current, after, tensors),
                )
            )
            current = after
        return current, cls(base=model.digest, steps=steps, tensors=tensors)

    def then(self, other: Recipe) -> Recipe:
        """Return this recipe and another one behind it.

        Raises:
            RecipeError: The other one does not start where this one ends.
        """
        if other.base != self.digest:
            raise RecipeError(
                "The second recipe does not start where the first one ends.",
                expected=self.digest,
                found=other.base,
            )
        return Recipe(
            base=self.base, steps=(*self.steps, *other.steps), tensors={**self.tensors, **other.tensors}
        )

    def apply(self, model: ModelSource) -> Model:
        """Replay the recipe on the model that it was made for.

        Args:
            model: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model.

        Returns:
            The same model, by its digest, that was made when the recipe was recorded.

        Raises:
            RecipeError: It is another model, or a step does not give the model that it gave then.
        """
        current = Model.load(model)
        if current.digest != self.base:
            raise RecipeError(
                "The recipe is for another model.",
                expected=f"digest {self.base}",
                found=f"digest {current.digest}",
                hint="Weights, names and signature must be those of the model that was tuned.",
            )
        for number, step in enumerate(self.steps):
            where = f"step {number}, {step.name}"
            try:
                current = patch(current, step.delta, self.tensors)
            except Exception as error:  # protobuf, onnx-ir and numpy have errors of many kinds
                raise RecipeError(f"A step of the recipe cannot be replayed: {error}", where=where) from error
            if current.digest != step.digest:
                raise RecipeError(
                    "A step gave another model than it gave when the recipe was made.",
                    where=where,
                    expected=step.digest,
                    found=current.digest,
                )
        return current

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe as a folder, atomically.

        Raises:
            RecipeError: It cannot be written.
        """
        index: dict[str, list[int]] = {}
        data = bytearray()
        for key, tensor in self.tensors.items():
            index[key] = [len(data), len(tensor)]
            data += tensor
        header = {
            "format": _FORMAT,
            "base": self.base,
            "steps": [attrs.asdict(step) for step in self.steps],
            "tensors": {"sha256": hashlib.sha256(data).hexdigest(), "index": index},
        }
        text = json.dumps(header, indent=1, ensure_ascii=False).encode()
        folder = Path(path)
        try:
            write_folder(folder, {_JSON: text, _TENSORS: bytes(data)})
        except OSError as error:
            raise RecipeError(f"The recipe cannot be written: {error}", where=str(folder)) from error
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read what `save` wrote; every tensor is checked against its hash.

        Raises:
            RecipeError: It is no recipe, of another format, or damaged.
        """
        folder = Path(path)
        header, data = _read(folder)
        try:
            if header["format"] != _FORMAT:
                raise RecipeError(
                    "The recipe is of another format.",
                    where=str(folder),
                    expected=_FORMAT,
                    found=header["format"],
                )
            tensors = {
                key: data[start : start + size] for key, (start, size) in header["tensors"]["index"].items()
            }
            steps = [decode(Step, step) for step in header["steps"]]
            damaged = [key for key, tensor in tensors.items() if hashlib.sha256(tensor).hexdigest() != key]
            found = cls(base=decode(str, header["base"]), steps=steps, tensors=tensors)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise RecipeError(f"That is no recipe: {error!r}", where=str(folder)) from error
        if damaged:
            raise RecipeError(
                "A tensor of the recipe is damaged.",
                where=str(folder / _TENSORS),
                expected=f"SHA-256 {damaged[0]}",
                hint="Copy it again.",
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the steps as JSON-compatible values; of computed weights, their hashes and sizes."""
        return {
            "base": self.base,
            "digest": self.digest,
            "steps": [attrs.asdict(step) for step in self.steps],
            "tensors": {key: len(tensor) for key, tensor in self.tensors.items()},
        }

    def table(self) -> Table:
        """Return one row a step."""
        rows = [
            (step.name, _brief(step.settings), _brief(step.decisions), step.digest[:12])
            for step in self.steps
        ]
        size = sum(map(len, self.tensors.values()))
        return Table(
            title=f"Recipe for the model {self.base[:12]}",
            columns=("transform", "settings", "decisions", "digest after"),
            rows=rows,
            footer=f"{len(self.tensors)} computed weights, {size / 1e6:.2f} MB",
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    try:
        with open_regular(folder / _JSON) as file:
            header = parse_json(file.read())
        with open_regular(folder / _TENSORS) as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"The recipe cannot be read: {error}",
            where=str(folder),
            expected=f"a folder with {_JSON} and {_TENSORS}, as Recipe.save writes it",
        ) from error
    if not isinstance(header, dict):
        raise RecipeError("That is no recipe.", where=str(folder / _JSON), expected="a JSON object")
    return header, data


def _decisions(before: Model, after: Model, reports: Iterable[TransformReport]) -> dict[str, Any]:
    """Return what a step decided, as far as reports and the model tell."""
    found: dict[str, Any] = {}
    for report in reports:
        groups = report.data.get("groups")
        if isinstance(groups, Mapping):
            found["channels"] = {
                name: [sizes["before"], sizes["after"]]
                for name, sizes in groups.items()
                if sizes["after"] < sizes["before"]
            }
        if report.notes:
            found.setdefault("notes", []).extend(report.notes)
    ranges = ranges_of(after.ir)
    if ranges and ranges != ranges_of(before.ir):
        found["ranges"] = {name: list(limits) for name, limits in sorted(ranges.items())}
        reasons = {entry.node: entry.reason for report in reports for entry in report.skipped if entry.node}
        found["float_layers"] = reasons
    return found


def _brief(values: Mapping[str, Any]) -> str:
    parts = []
    for name, value in values.items():
        shown = f"{len(value)}" if isinstance(value, (list, dict)) else str(value)
        parts.append(f"{name}: {shown}")
    return ", ".join(parts)
