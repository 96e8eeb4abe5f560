"""`Draft`: a change of a repository's metadata in the making, and the signatures that it still lacks."""

from __future__ import annotations

import copy
import datetime as dt
import functools
from collections.abc import Mapping
from typing import Any, TypeAlias, final

import attrs
from tuf.api.metadata import DelegatedRole, Delegations, Key, Metadata, Root, Snapshot, Targets
from tuf.api.serialization.json import JSONSerializer

from edgeinfer.fleet.device.trust import RELEASE_KEYS, role_of
from edgeinfer.fleet.errors import RepositoryError
from edgeinfer.fleet.operator.key_files import signed_if_there
from edgeinfer.fleet.operator.keys import KeyRing

__all__ = ["DAY_S", "Draft", "Expiry", "Files", "State", "expires", "serialized"]

DAY_S = 86_400
Files: TypeAlias = "dict[str, Metadata[Any]]"


@final
@attrs.frozen(kw_only=True)
class Expiry:
    """How long metadata is good for, in days, by role.

    The timestamp's time is how long an attacker who holds back news can do so unnoticed, and how long devices
    can install without anyone who signs.
    """

    root: float = 730
    targets: float = 365
    releases: float = 365
    snapshot: float = 90
    timestamp: float = 14


@final
@attrs.frozen(kw_only=True)
class State:
    """The newest metadata of a repository, verified.

    Attributes:
        root: The root role.
        targets: The top-level targets role.
        snapshot: The snapshot role.
        releases: The delegated roles, by role name.
        versions: The highest version by role for which there is a file; the next one is free.
    """

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    releases: Mapping[str, Metadata[Targets]]
    versions: Mapping[str, int]

    def release_targets(self, model: str) -> Targets | None:
        """Return the role of a model's releases; None where it has none."""
        found = self.releases.get(role_of(model))
        return None if found is None else found.signed


@final
class Draft:
    """A change in the making. What is asked for with `edit_…` may be changed, and is signed again.

    Args:
        state: What is changed.
        keys: Those that are here sign.
        now: The time, in seconds since 1970 UTC.
        expiry: How long what is signed is good for.
    """

    def __init__(self, state: State, keys: KeyRing, *, now: float, expiry: Expiry) -> None:
        self.state = state
        self.now = now
        self._keys = keys
        self._expiry = expiry
        self._edited: Files = {}

    def edit_root(self) -> Root:
        """Return the root role, to be changed."""
        root: Root = self._edit("root", self.state.root).signed
        return root

    def edit_targets(self) -> Targets:
        """Return the top-level targets role, to be changed."""
        targets: Targets = self._edit("targets", self.state.targets).signed
        return targets

    def edit_releases(self, model: str) -> Targets:
        """Return the role of a model's releases, to be changed; it is delegated to where it is new.

        Raises:
            RepositoryError: The metadata does not say who signs releases.
        """
        role = role_of(model)
        if role not in self.state.releases and role not in self._edited:
            self._delegate(model)
            self._edited[role] = Metadata(Targets(version=1))
        releases: Targets = self._edit(role, self.state.releases.get(role)).signed
        return releases

    def signed(self) -> Files:
        """Return what was edited with new versions and expiry, signed by the keys that are here."""
        for role, metadata in self._edited.items():
            metadata.signed.version = self.state.versions.get(role, 0) + 1
            days = getattr(self._expiry, role if role in ("root", "targets") else "releases")
            metadata.signed.expires = expires(self.now + days * DAY_S)
            metadata.signatures.clear()
        self.add_signatures(self._edited)
        return self._edited

    def add_signatures(self, files: Files) -> None:
        """Sign files of roles with those of their keys that are here."""
        for role, metadata in files.items():
            for signer in self._keys.signers(self._keyids(role, files)):
                if signer.public_key.keyid not in metadata.signatures:
                    signed_if_there(signer, functools.partial(metadata.sign, append=True))

    def missing(self, files: Files) -> dict[str, int]:
        """Return how many signatures each role lacks; roles that lack none are left out."""
        found = {}
        for role, metadata in files.items():
            payload, signatures = metadata.signed_bytes, metadata.signatures
            if role == "root":
                result = metadata.signed.get_root_verification_result(
                    self.state.root.signed, payload, signatures
                )
                count = max(result.first.missing, result.second.missing)
            else:
                count = (
                    self._delegator(role, files).get_verification_result(role, payload, signatures).missing
                )
            if count:
                found[role] = count
        return found

    def _edit(self, role: str, current: Metadata[Any] | None) -> Metadata[Any]:
        if role not in self._edited:
            assert current is not None, role
            self._edited[role] = copy.deepcopy(current)
        return self._edited[role]

    def _delegator(self, role: str, files: Files) -> Any:
        name = "root" if role in ("targets", "snapshot", "timestamp") else "targets"
        edited = files.get(name)
        return (edited or (self.state.root if name == "root" else self.state.targets)).signed

    def _keyids(self, role: str, files: Files) -> list[str]:
        if role != "root":
            found: list[str] = self._delegator(role, files).get_delegated_role(role).keyids
            return found
        old, new = self.state.root.signed, files["root"].signed
        return [*dict.fromkeys([*old.roles["root"].keyids, *new.roles["root"].keyids])]

    def _delegate(self, model: str) -> None:
        targets = self.edit_targets()
        if targets.delegations is None:
            targets.delegations = Delegations(keys={}, roles={})
        try:
            signing = targets.unrecognized_fields[RELEASE_KEYS]
            keys = {keyid: Key.from_dict(keyid, dict(fields)) for keyid, fields in signing["keys"].items()}
            threshold = signing["threshold"]
        except (KeyError, TypeError, ValueError) as error:
            raise RepositoryError("The metadata does not say who signs releases.") from error
        targets.delegations.keys.update(keys)
        assert targets.delegations.roles is not None
        targets.delegations.roles[role_of(model)] = DelegatedRole(
            role_of(model), list(keys), threshold, True, [f"models/{model}/*", f"models/{model}/*/*"]
        )


def expires(at: float) -> dt.datetime:
    """Return a time as TUF has it: UTC, full seconds."""
    return dt.datetime.fromtimestamp(int(at), dt.timezone.utc)


def serialized(metadata: Metadata[Any]) -> bytes:
    """Return metadata as it is written."""
    return metadata.to_bytes(JSONSerializer(compact=True))
