"""The journal of a device: one `state.json`, replaced atomically, with its own SHA-256.

It holds what a power loss must not hide: which update is under way and how far it is, how often it was tried,
what is quarantined, and the floors below which nothing is accepted (assignments, metadata, time). What runs
is not in here: the pointer `current` alone says that (see `generations`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.artifact.decode import DecodeError, Hooks, decode, encode
from edgeinfer.fleet.device.documents import canonical_json, sha256
from edgeinfer.fleet.device.local_files import read_json, replace_file
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.errors import JournalError

__all__ = ["Boots", "Change", "Floors", "Journal", "Quarantined", "SoakRecord", "State", "Update"]

_MAX_BYTES = 4 << 20


@final
@attrs.frozen(kw_only=True)
class Change:
    """What an update changes for one model.

    Attributes:
        model: Its name.
        generation: (epoch, n) of the assignment.
        release: The digest of its release; empty takes the model away.
        version: The version of that release.
        start_before: Until when it may be activated, in seconds since 1970.
        stage: `shadow` asks for a comparison on live inputs.
        variant: The variant that was chosen for this device; empty before.
    """

    model: str
    generation: tuple[int, ...]
    release: str
    version: str = ""
    start_before: int
    stage: str | None = None
    variant: str = ""


@final
@attrs.frozen(kw_only=True)
class SoakRecord:
    """What a soak has seen, kept over restarts.

    Attributes:
        seconds: How long the new models have run.
        unclean: Reboots in that time that no one asked for.
        crashes: Applications in that time that ended without closing.
    """

    seconds: float = 0.0
    unclean: int = 0
    crashes: int = 0


@final
@attrs.frozen(kw_only=True)
class Update:
    """An update that is under way, or the last one.

    Attributes:
        phase: How far it is.
        changes: The models that switch together.
        number: The generation on disk that it makes; 0 before there is one.
        previous: The generation that it goes back to; 0 where there is none.
        since: When this phase began, in seconds since 1970.
        attempts: How often staging was begun; counted before the model is loaded.
        restarts: How often the agent itself was started again in this update, without a reboot.
        deferred_until: Until when an application may put the activation off; 0 before it is ready.
        soak: What the soak has seen.
        agreement: Model -> the share of live requests in which a shadow answered as the model before.
        code: Why it is where it is, in one word for programs.
        detail: The same for people.
    """

    phase: Phase
    changes: tuple[Change, ...]
    number: int = 0
    previous: int = 0
    since: int = 0
    attempts: int = 0
    restarts: int = 0
    deferred_until: int = 0
    soak: SoakRecord = attrs.field(factory=SoakRecord)
    agreement: Mapping[str, float] = attrs.field(factory=dict)
    code: str = ""
    detail: str = ""

    @property
    def releases(self) -> tuple[str, ...]:
        """The digests of the releases that it installs."""
        return tuple(change.release for change in self.changes if change.release)


@final
@attrs.frozen(kw_only=True)
class Quarantined:
    """Why a release is not tried again on a device of a class.

    Attributes:
        device_class: The class.
        code: Why, as in the report.
        at: Since when.
        facts: A digest of what the device was then; once it is another (a new runtime), it may be tried.
    """

    device_class: str
    code: str
    at: int
    facts: str = ""


@final
@attrs.frozen(kw_only=True)
class Floors:
    """What must not go back.

    Attributes:
        time: Signed times and running clocks have reached this, in seconds since 1970.
        metadata: The highest trusted version of each metadata file.
        generations: The highest accepted (epoch, n) of each model.
        issued_at: When the newest document of assignments was signed.
    """

    time: int = 0
    issued_at: int = 0
    metadata: Mapping[str, int] = attrs.field(factory=dict)
    generations: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict)


@final
@attrs.frozen(kw_only=True)
class Boots:
    """How this device usually starts: its own baseline of reboots that no one asked for.

    Attributes:
        boot_id: Of the boot in which the agent last wrote.
        clean: Whether no agent has run since, or it was stopped in order.
        unclean: Reboots that came unasked, outside of soaks.
        crashes: Applications that ended without closing, outside of soaks.
        seconds: How long the device was watched, outside of soaks.
    """

    boot_id: str = ""
    clean: bool = True
    unclean: int = 0
    crashes: int = 0
    seconds: float = 0.0


@final
@attrs.frozen(kw_only=True)
class State:
    """All of the journal.

    Attributes:
        format: Of this document.
        sequence: Of the last report.
        last_number: The highest generation that was ever made here.
        floors: What must not go back.
        update: The update under way, or the last one.
        quarantine: By the digest of a release.
        boots: How this device usually starts.
        history: The digests and versions that were committed, by model, oldest first: stepping stones.
        lost: How often the journal itself was lost.
    """

    format: int = 1
    sequence: int = 0
    last_number: int = 0
    floors: Floors = attrs.field(factory=Floors)
    update: Update | None = None
    quarantine: Mapping[str, Quarantined] = attrs.field(factory=dict)
    boots: Boots = attrs.field(factory=Boots)
    history: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    lost: int = 0


_ENCODE: Hooks = {Phase: lambda phase: phase.value}
_DECODE: Hooks = {Phase: Phase}


@final
class Journal:
    """`state.json` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.json"

    def load(self) -> State | None:
        """Return what was saved last; None where nothing ever was.

        Raises:
            JournalError: It is damaged, or of a later format.
            OSError: The disk does not give it.
        """
        try:
            return _state_of(read_json(self.path, _MAX_BYTES))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, DecodeError) as error:
            raise JournalError(
                "The journal of this device is damaged.",
                where=str(self.path),
                found=f"{type(error).__name__}: {error}",
                hint="The agent rebuilds it from the pointer `current` and reports journal_lost.",
            ) from error

    def save(self, state: State) -> None:
        """Replace it durably.

        Raises:
            OSError: Of what failed; the old one is still there.
        """
        fields: dict[str, Any] = encode(state, _ENCODE)
        document = {"sha256": sha256(canonical_json(fields)), "state": fields}
        replace_file(self.path, canonical_json(document), durable=True)


def _state_of(document: Any) -> State:
    state = document["state"]
    if document["sha256"] != sha256(canonical_json(state)):
        raise ValueError("its SHA-256 is not that of its contents")
    if state["format"] != State().format:
        raise ValueError(f"format {state['format']!r}")
    return decode(State, state, _DECODE, skip_unknown=True)
