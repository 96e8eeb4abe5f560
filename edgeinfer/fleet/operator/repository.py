"""`Repository`: the signed metadata of a fleet, as its publishers write it.

Publishing is safe for several at once, also on an object store that has no locks. Every file has its version
in its name and is *created*, which fails for the second who tries. To create `N.snapshot.json` is to publish:
it names all the rest, which is there by then. Whoever fails starts again from what the other has published.
The newest snapshot is the truth; `timestamp.json` is a pointer that anybody who has the online keys moves on.
In a folder there is a lock besides, so that nobody has to try twice.

    metadata/N.root.json  N.targets.json  N.models-NAME.json  N.snapshot.json  N.timestamp.json
    metadata/timestamp.json  root.json     the newest of these
    targets/models/NAME/VERSION/HASH.release.json
    blobs/sha256/ab/abcd…
"""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Callable
from typing import Any, final

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edgeinfer.atomic import write_file
from edgeinfer.fleet.device.tuf_client import ISSUED_AT
from edgeinfer.fleet.errors import KeyFileError, PublishConflictError
from edgeinfer.fleet.operator.draft import DAY_S, Draft, Expiry, Files, State, expires, serialized
from edgeinfer.fleet.operator.key_files import signed_if_there
from edgeinfer.fleet.operator.keys import KeyRing
from edgeinfer.fleet.operator.reading import MetadataReader
from edgeinfer.fleet.operator.storage import Storage

__all__ = ["Repository"]

_ATTEMPTS = 30
_KEPT_TIMESTAMPS = 20


@final
class Repository:
    """The signed metadata of a fleet.

    Args:
        storage: Where it is.
        keys: The keys of those who write to it.
        clock: The time in seconds since 1970 UTC.
        expiry: How long what is signed is good for.
    """

    def __init__(
        self,
        storage: Storage,
        keys: KeyRing,
        *,
        clock: Callable[[], float] = time.time,
        expiry: Expiry | None = None,
    ) -> None:
        self.storage = storage
        self.keys = keys
        self.clock = clock
        self.expiry = expiry or Expiry()
        self._reader = MetadataReader(storage, keys)

    @property
    def exists(self) -> bool:
        """Whether there is a repository."""
        return self.storage.exists("metadata/1.root.json")

    def found(self, root: Metadata[Root], targets: Metadata[Targets]) -> None:
        """Sign and publish the first metadata; see `create_repository`.

        Raises:
            KeyFileError: A key that must sign is not here.
        """
        snapshot = Metadata(Snapshot(1, None, expires(self.clock() + self.expiry.snapshot * DAY_S), {}))
        for role, metadata in (("root", root), ("targets", targets), ("snapshot", snapshot)):
            if role == "snapshot":
                snapshot.signed.meta = {"targets.json": _described(1, serialized(targets))}
            self._sign_with(metadata, role, root.signed)
        with self.storage.lock():
            self.keys.trust(serialized(root))
            self._write({"root": root, "targets": targets, "snapshot": snapshot})

    def state(self) -> State:
        """Read and verify the newest metadata.

        Raises:
            RepositoryError: Something is missing, or is not signed by the keys that it must be signed by.
        """
        return self._reader.state()

    def update(self, change: Callable[[Draft], object]) -> dict[str, int]:
        """Change, sign and publish the metadata.

        Args:
            change: Changes a draft. It is called again when another publisher was faster.

        Returns:
            The signatures that are missing, by role; then the change is kept beside the keys, and `sign` goes
            on with it. Empty when it is published.

        Raises:
            PublishConflictError: Others published again and again, or a change waits for signatures.
            RepositoryError: As `state`.
        """
        for _ in range(_ATTEMPTS):
            with self.storage.lock():
                self._finish_interrupted()
                if self._proposal() is not None:
                    raise PublishConflictError(
                        "Another change waits for signatures.",
                        where=str(self._proposal_file),
                        hint="Sign it with `edgeinfer fleet sign`, or give it up with --drop.",
                    )
                draft = self._draft()
                change(draft)
                try:
                    return self._publish(draft, draft.signed())
                except FileExistsError:
                    pass  # another publisher was faster
            time.sleep(random.uniform(0.01, 0.1))  # noqa: S311 (no secret)
        raise PublishConflictError("Others publish all the time.", where=self.storage.url)

    def sign(self) -> dict[str, int]:
        """Add signatures to a change that waits for them; or sign the online roles again where none waits.

        Returns:
            As `update`.

        Raises:
            PublishConflictError: The repository has moved on since the change was made.
        """
        with self.storage.lock():
            self._finish_interrupted()
            files = self._proposal()
            if files is not None:
                draft = self._draft()
                for role, metadata in files.items():
                    if metadata.signed.version != draft.state.versions.get(role, 0) + 1:
                        raise PublishConflictError(
                            "The repository has moved on since the change was made.",
                            where=role,
                            hint="Give it up with --drop, and make it again.",
                        )
                draft.add_signatures(files)
                try:
                    return self._publish(draft, files)
                except FileExistsError as error:
                    raise PublishConflictError("Another publisher was faster.", where=str(error)) from error
            left = self.state().snapshot.signed.expires.timestamp() - self.clock()
        if left < self.expiry.snapshot * DAY_S / 2:
            return self.update(lambda _: None)
        self.stamp()
        return {}

    def drop(self) -> None:
        """Give up a change that waits for signatures."""
        self._proposal_file.unlink(missing_ok=True)

    def stamp(self, *, lifetime_s: float | None = None) -> bytes:
        """Sign a timestamp for the newest snapshot, and return it.

        Two that do so at once get different versions, and the greater version never names the older snapshot:
        whoever fails to create a version looks for the newest snapshot again.

        Args:
            lifetime_s: How long it is good for; None for what `Expiry` says.

        Raises:
            KeyFileError: The key of the role timestamp is not here.
        """
        lifetime = self.expiry.timestamp * DAY_S if lifetime_s is None else lifetime_s
        for _ in range(_ATTEMPTS):
            versions = self._reader.versions()
            number, snapshot = versions.get("timestamp", 0) + 1, versions["snapshot"]
            meta = _described(snapshot, self.storage.read(f"metadata/{snapshot}.snapshot.json"))
            now = int(self.clock())
            metadata = Metadata(Timestamp(number, None, expires(now + lifetime), meta, {ISSUED_AT: now}))
            root = self._reader.root(versions["root"]).signed
            self._sign_with(metadata, "timestamp", root)
            try:
                self.storage.create(f"metadata/{number}.timestamp.json", serialized(metadata))
            except FileExistsError:
                continue
            self._point(number)
            return serialized(metadata)
        raise PublishConflictError("Others publish all the time.", where=self.storage.url)

    def _draft(self) -> Draft:
        return Draft(self.state(), self.keys, now=self.clock(), expiry=self.expiry)

    def _publish(self, draft: Draft, files: Files) -> dict[str, int]:
        missing = draft.missing(files)
        root = files["root"].signed if "root" in files else draft.state.root.signed
        for role in ("snapshot", "timestamp"):  # whoever publishes signs these, too
            if len(self.keys.signers(root.roles[role].keyids)) < root.roles[role].threshold:
                missing[role] = root.roles[role].threshold
        if missing:
            self._keep(files, complete=False)
            return missing
        files = {**files, "snapshot": self._snapshot(draft, files, root)}
        if (
            "root" in files
        ):  # half of it would lock everybody out: what is begun is finished, even after a crash
            self._keep(files, complete=True)
        self._write(files)
        return {}

    def _write(self, files: Files) -> None:
        for role in sorted(files, key=lambda role: (role == "snapshot", role != "root")):
            path, data = f"metadata/{files[role].signed.version}.{role}.json", serialized(files[role])
            try:
                self.storage.create(path, data)
            except FileExistsError:
                if self.storage.read(path) != data:
                    if role == "root":  # nothing of it is there yet, so it may be made again
                        self._proposal_file.unlink(missing_ok=True)
                    raise
        if "root" in files:
            self.storage.replace("metadata/root.json", serialized(files["root"]))
            self.keys.trust(serialized(files["root"]))
        self._proposal_file.unlink(missing_ok=True)
        self.stamp()

    def _snapshot(self, draft: Draft, files: Files, root: Root) -> Metadata[Snapshot]:
        old = draft.state.snapshot.signed
        named = {f"{role}.json": _described(m.signed.version, serialized(m)) for role, m in files.items()}
        named.pop("root.json", None)
        metadata = Metadata(
            Snapshot(
                draft.state.versions.get("snapshot", 0) + 1,
                None,
                expires(self.clock() + self.expiry.snapshot * DAY_S),
                {**old.meta, **named},
            )
        )
        self._sign_with(metadata, "snapshot", root)
        return metadata

    def _sign_with(self, metadata: Metadata[Any], role: str, root: Root) -> None:
        for signer in self.keys.signers(root.roles[role].keyids):
            signed_if_there(signer, functools.partial(metadata.sign, append=True))
        if len(metadata.signatures) < root.roles[role].threshold:
            raise KeyFileError(
                f"The key of the role {role} is not here.",
                where=str(self.keys.folder),
                expected=f"{root.roles[role].threshold} of {', '.join(root.roles[role].keyids)}",
                hint="Run this where that key is.",
            )

    def _point(self, number: int) -> None:
        """Let `timestamp.json` be the newest, also when another publisher writes it at the same moment."""
        newest = number
        while True:
            self.storage.replace(
                "metadata/timestamp.json", self.storage.read(f"metadata/{newest}.timestamp.json")
            )
            found = self._reader.versions()["timestamp"]
            if found == newest:
                break
            newest = found
        for version in range(max(1, newest - 2 * _KEPT_TIMESTAMPS), newest - _KEPT_TIMESTAMPS):
            self.storage.remove(f"metadata/{version}.timestamp.json")

    @property
    def _proposal_file(self) -> Any:
        return self.keys.folder / "proposal.json"

    def _keep(self, files: Files, *, complete: bool) -> None:
        fields = {role: metadata.to_dict() for role, metadata in files.items()}
        self.keys.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(
            self._proposal_file, json.dumps({"complete": complete, "files": fields}, sort_keys=True).encode()
        )

    def _proposal(self, *, complete: bool = False) -> Files | None:
        try:
            found = json.loads(self._proposal_file.read_bytes())
        except FileNotFoundError:
            return None
        if found["complete"] is not complete:
            return None
        return {role: Metadata.from_dict(fields) for role, fields in found["files"].items()}

    def _finish_interrupted(self) -> None:
        files = self._proposal(complete=True)
        if files is not None:
            self._write(files)


def _described(version: int, data: bytes) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])
