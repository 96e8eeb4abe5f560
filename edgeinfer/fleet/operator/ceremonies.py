"""What is done with keys: a new fleet, new keys, withdrawn releases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tuf.api.metadata import Key, Metadata, Role, Root, Targets

from edgeinfer.fleet.device.assignment import AssignmentKeys
from edgeinfer.fleet.device.release import DIGEST
from edgeinfer.fleet.device.trust import ASSIGNMENT_KEYS, RELEASE_KEYS, WITHDRAWN, release_path
from edgeinfer.fleet.errors import RepositoryError
from edgeinfer.fleet.operator.draft import DAY_S, Draft, expires
from edgeinfer.fleet.operator.keys import OFFLINE, ONLINE
from edgeinfer.fleet.operator.repository import Repository

__all__ = ["create_repository", "digest_of", "keys_of", "rotate", "withdraw"]

_LEAST = 8  # digits of a digest that is not written in full
_TUF_ROLES = ("root", "targets", "snapshot", "timestamp")


def create_repository(
    repository: Repository,
    *,
    counts: Mapping[str, int] | None = None,
    thresholds: Mapping[str, int] | None = None,
    encrypt: bool = True,
) -> None:
    """Make the keys of a fleet and publish its first, empty metadata.

    Args:
        repository: Where; it must not exist.
        counts: How many keys a role gets; one where nothing is said. Keys that the ring has already, such as
            those of an HSM, count.
        thresholds: How many of them must sign; one where nothing is said.
        encrypt: Encrypt the keys with the passphrase.

    Raises:
        RepositoryError: There is one already, or a threshold is out of reach.
        KeyFileError: There is no passphrase.
    """
    if repository.exists:
        raise RepositoryError("There is a repository already.", where=repository.storage.url)
    wanted = {role: (counts or {}).get(role, 1) for role in (*OFFLINE, *ONLINE)}
    least = {role: (thresholds or {}).get(role, 1) for role in wanted}
    for role, count in wanted.items():
        if not 1 <= least[role] <= count:
            raise RepositoryError(
                f"The threshold of the role {role} is out of reach.",
                expected=f"1 to {count}",
                found=least[role],
            )
        for _ in range(count - len(repository.keys.public(role))):
            repository.keys.generate(role, encrypt=encrypt)
    keys = {role: repository.keys.public(role) for role in wanted}
    now, expiry = repository.clock(), repository.expiry
    root = Root(version=1, expires=expires(now + expiry.root * DAY_S), consistent_snapshot=True)
    for role in _TUF_ROLES:
        root.roles[role] = Role(list(keys[role]), least[role])
        root.keys.update(keys[role])
    targets = Targets(version=1, expires=expires(now + expiry.targets * DAY_S))
    for field, role in ((RELEASE_KEYS, "releases"), (ASSIGNMENT_KEYS, "assignments")):
        targets.unrecognized_fields[field] = AssignmentKeys(keys=keys[role], threshold=least[role]).to_dict()
    targets.unrecognized_fields[WITHDRAWN] = []
    repository.found(Metadata(root), Metadata(targets))


def keys_of(repository: Repository, role: str) -> tuple[str, ...]:
    """Return the ids of the keys that a role has now.

    Raises:
        RepositoryError: There is no such role.
    """
    state = repository.state()
    if role in _TUF_ROLES:
        return tuple(state.root.signed.roles[role].keyids)
    return tuple(state.targets.signed.unrecognized_fields[_field_of(role)]["keys"])


def rotate(
    repository: Repository,
    role: str,
    *,
    add: Iterable[Key] = (),
    remove: Iterable[str] = (),
    threshold: int | None = None,
) -> dict[str, int]:
    """Replace keys of a role, and sign again what they sign.

    Args:
        repository: Where.
        role: One of root, targets, releases, snapshot, timestamp or assignments.
        add: Public keys; their private halves are in the key ring, here or elsewhere.
        remove: Ids of keys, or their beginnings.
        threshold: How many must sign from now on; None for as many as now.

    Returns:
        The signatures that are missing, as `Repository.update`.

    Raises:
        RepositoryError: There is no such role or key, or too few keys would be left.
    """
    added, removed = list(add), list(remove)

    def change(draft: Draft) -> None:
        if role in _TUF_ROLES:
            root = draft.edit_root()
            found = {keyid: root.keys[keyid] for keyid in root.roles[role].keyids}
            keys = _exchanged(found, added, removed)
            root.roles[role] = Role(list(keys), _threshold(keys, threshold, root.roles[role].threshold))
            root.keys.update(keys)
            used = {keyid for one in root.roles.values() for keyid in one.keyids}
            root.keys = {keyid: key for keyid, key in root.keys.items() if keyid in used}
            if role == "targets":
                draft.edit_targets()
            return
        field = _field_of(role)
        targets = draft.edit_targets()
        old = AssignmentKeys.from_dict(targets.unrecognized_fields[field])
        keys = _exchanged(old.keys, added, removed)
        least = _threshold(keys, threshold, old.threshold)
        targets.unrecognized_fields[field] = AssignmentKeys(keys=keys, threshold=least).to_dict()
        if role == "releases":
            _delegate_to(draft, targets, keys, least)

    return repository.update(change)


def withdraw(
    repository: Repository, digest: str, *, device_class: str = "*", undo: bool = False
) -> dict[str, int]:
    """Withdraw a release from a class of devices, or from all: they refuse it from then on, also by USB.

    Args:
        repository: Where.
        digest: The release's digest.
        device_class: The class; `*` for all.
        undo: Allow it again.

    Returns:
        The signatures that are missing, as `Repository.update`.

    Raises:
        RepositoryError: That is no digest.
    """
    if DIGEST.match(digest) is None:
        raise RepositoryError(
            "That is no digest of a release.", expected="64 hexadecimal digits", found=digest
        )

    def change(draft: Draft) -> None:
        targets = draft.edit_targets()
        found = {tuple(pair) for pair in targets.unrecognized_fields.get(WITHDRAWN, [])}
        pairs = found - {(digest, device_class)} if undo else found | {(digest, device_class)}
        targets.unrecognized_fields[WITHDRAWN] = [list(pair) for pair in sorted(pairs)]

    return repository.update(change)


def digest_of(repository: Repository, text: str) -> str:
    """Return the digest of the release that a person means.

    Args:
        repository: Where it was published.
        text: `MODEL@VERSION`, the digest, or how the digest of a published release begins (8 digits or more).

    Raises:
        RepositoryError: It means none, or several.
    """
    if DIGEST.match(text) is not None:
        return text  # also of a release that is not in this repository any more
    published = {
        path: info.hashes["sha256"]
        for metadata in repository.state().releases.values()
        for path, info in metadata.signed.targets.items()
    }
    model, at, version = text.partition("@")
    if at:
        found = {published[path] for path in (release_path(model, version),) if path in published}
    else:
        found = {digest for digest in published.values() if len(text) >= _LEAST and digest.startswith(text)}
    if len(found) != 1:
        known = ", ".join(sorted("@".join(path.split("/")[1:3]) for path in published))
        raise RepositoryError(
            "That names no release.",
            expected=f"MODEL@VERSION or a digest; published are {known or 'none'}",
            found=text,
        )
    return found.pop()


def _field_of(role: str) -> str:
    field = {"releases": RELEASE_KEYS, "assignments": ASSIGNMENT_KEYS}.get(role)
    if field is None:
        raise RepositoryError("There is no such role.", expected=", ".join((*OFFLINE, *ONLINE)), found=role)
    return field


def _delegate_to(draft: Draft, targets: Targets, keys: Mapping[str, Key], threshold: int) -> None:
    """Let other keys sign all releases, and sign them with those."""
    if targets.delegations is None:
        return
    assert targets.delegations.roles is not None
    targets.delegations.keys = dict(keys)
    for name, delegated in targets.delegations.roles.items():
        delegated.keyids = list(keys)
        delegated.threshold = threshold
        draft.edit_releases(name.removeprefix("models-"))


def _exchanged(found: Mapping[str, Key], add: list[Key], remove: list[str]) -> dict[str, Key]:
    gone = {keyid for keyid in found if any(keyid.startswith(start) for start in remove)}
    unknown = [start for start in remove if not any(keyid.startswith(start) for keyid in found)]
    if unknown:
        raise RepositoryError(
            "The role has no such key.", expected=", ".join(found), found=", ".join(unknown)
        )
    kept = {keyid: key for keyid, key in found.items() if keyid not in gone}
    return {**kept, **{key.keyid: key for key in add}}


def _threshold(keys: Mapping[str, Any], wanted: int | None, now: int) -> int:
    least = now if wanted is None else wanted
    if not 1 <= least <= len(keys):
        raise RepositoryError("Too few keys would be left.", expected=f"at least {least}", found=len(keys))
    return least
