"""Generations: which models run, all of them together, by one rename.

    current -> generations/7
    generations/7/generation.json       the pins: release, variant and folder of each model
    generations/7/committed             its soak was passed
    installed/<release>-<variant>/      release.json, artifact/ and bundle/ of one variant, never changed

`current` is the only truth about what runs. It is switched by renaming a symbolic link over it.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import final

import attrs

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.decode import DecodeError, decode, encode
from edgeinfer.atomic import write_folder
from edgeinfer.errors import ArtifactError
from edgeinfer.fleet.device.documents import canonical_json
from edgeinfer.fleet.device.local_files import fsync_folder, read_json, switch_link
from edgeinfer.fleet.errors import GenerationError

__all__ = ["Generation", "Generations", "Pin"]

_MAX_BYTES = 4 << 20
_TARGET = re.compile(r"generations/([1-9][0-9]{0,15})\Z")


@final
@attrs.frozen(kw_only=True)
class Pin:
    """One model of a generation.

    Attributes:
        release: The digest of its release.
        version: The version of the release.
        interface: What applications must accept, such as `defects/2`.
        variant: The variant's name.
        artifact: The digest of the artifact.
        folder: Where it is below the device's folder, such as `installed/3f…-openvino`.
        assignment: (epoch, n) of the assignment that brought it.
    """

    release: str
    version: str
    interface: str
    variant: str
    artifact: str
    folder: str
    assignment: tuple[int, ...]


@final
@attrs.frozen(kw_only=True)
class Generation:
    """The models that run together.

    Attributes:
        number: Ascending on this device.
        previous: The generation to go back to; 0 where there is none.
        created_at: Seconds since 1970.
        models: The pins by model.
        assignments: The highest (epoch, n) that was accepted for each model, those taken away included.
    """

    number: int
    previous: int = 0
    created_at: int = 0
    models: Mapping[str, Pin] = attrs.field(factory=dict)
    assignments: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict)


@final
class Generations:
    """The generations in a device's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._link = root / "current"
        self._folder = root / "generations"

    def current(self) -> int:
        """Return the number of the generation that runs; 0 where there is none."""
        try:
            target = self._link.readlink()
        except OSError:
            return 0
        match = _TARGET.fullmatch(str(target))
        return int(match[1]) if match is not None else 0

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of what is on disk, ascending."""
        try:
            names = [entry.name for entry in self._folder.iterdir()]
        except FileNotFoundError:
            return ()
        return tuple(sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]{0,15}", name)))

    def read(self, number: int) -> Generation:
        """Return the pins of a generation.

        Raises:
            GenerationError: It is not there, or damaged.
        """
        path = self._folder / str(number) / "generation.json"
        try:
            found = decode(Generation, read_json(path, _MAX_BYTES), skip_unknown=True)
        except (OSError, ValueError, DecodeError) as error:
            raise GenerationError(
                "A generation cannot be read.", where=str(path), found=f"{type(error).__name__}: {error}"
            ) from error
        if found.number != number:
            raise GenerationError("A generation has the number of another.", where=str(path), found=number)
        return found

    def verify(self, number: int) -> Generation:
        """Return the pins of a generation whose every file has the digest that it should have.

        Raises:
            GenerationError: It is not there, or damaged.
        """
        generation = self.read(number)
        for name, pin in generation.models.items():
            folder = self.root / pin.folder / "artifact"
            try:
                digest = Artifact.open(folder).digest
            except ArtifactError as error:
                raise GenerationError(
                    f"The model {name!r} is damaged.", where=str(folder), found=error.what
                ) from error
            if digest != pin.artifact:
                raise GenerationError(
                    f"The model {name!r} is another one.",
                    where=str(folder),
                    expected=pin.artifact,
                    found=digest,
                )
        return generation

    def write(self, generation: Generation) -> None:
        """Make a generation, durably. What a crash left of one of this number is replaced.

        Raises:
            OSError: Of what failed.
        """
        self._folder.mkdir(exist_ok=True)
        content = canonical_json(encode(generation))
        write_folder(self._folder / str(generation.number), {"generation.json": content})
        fsync_folder(self.root)

    def activate(self, number: int) -> None:
        """Let `current` point to a generation: the one act by which anything changes for applications.

        Raises:
            OSError: Of what failed.
        """
        switch_link(self._link, f"generations/{number}")

    def commit(self, number: int) -> None:
        """Mark durably that its soak was passed.

        Raises:
            OSError: Of what failed.
        """
        folder = self._folder / str(number)
        (folder / "committed").touch()
        fsync_folder(folder)

    def committed(self, number: int) -> bool:
        """Tell whether its soak was passed."""
        return (self._folder / str(number) / "committed").exists()

    def collect(self, keep: frozenset[int]) -> None:
        """Remove all generations but these, and what is installed for none of these.

        What cannot be removed is left for the next time.
        """
        folders: set[str] = set()
        for number in keep:
            with contextlib.suppress(GenerationError):
                folders |= {Path(pin.folder).name for pin in self.read(number).models.values()}
        for number in self.numbers():
            if number not in keep:
                shutil.rmtree(self._folder / str(number), ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            for entry in (self.root / "installed").iterdir():
                if entry.name not in folders:
                    shutil.rmtree(entry, ignore_errors=True)
