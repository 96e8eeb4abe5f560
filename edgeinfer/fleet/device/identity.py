"""`Identity`: who a device is. Enrolled once by the operator, or made up at the first start."""

from __future__ import annotations

import os
import platform
import re
import secrets
from pathlib import Path
from typing import final

import attrs

from edgeinfer.artifact.decode import DecodeError, decode, encode
from edgeinfer.fleet.device.documents import canonical_json
from edgeinfer.fleet.device.local_files import read_json, replace_file
from edgeinfer.fleet.errors import AgentError

__all__ = ["DEVICE_NAME", "Identity"]

DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_HEX = re.compile(r"(?:[0-9a-f]{2}){16,64}\Z")


@final
@attrs.frozen(kw_only=True)
class Identity:
    """Who a device is: `device.json` in its folder, for its agent alone.

    Attributes:
        device: Its name in the fleet.
        incarnation: Of this life of it: greater after it is flashed again.
        device_class: Devices of one class fail alike, so quarantine is by class. Empty: the name of the
            device profile.
        key: What its reports are authenticated with, 16 to 64 bytes in hexadecimal.
    """

    device: str = attrs.field(validator=attrs.validators.matches_re(DEVICE_NAME))
    incarnation: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    device_class: str = ""
    key: str = attrs.field(validator=attrs.validators.matches_re(_HEX), repr=False)

    @property
    def key_bytes(self) -> bytes:
        """The key."""
        return bytes.fromhex(self.key)

    @classmethod
    def made_up(cls, device: str | None = None, device_class: str | None = None) -> Identity:
        """Return an identity for a device that nobody enrolled: the host's name, and a random key."""
        name = device or re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()).lstrip("._-") or "device"
        return cls(device=name[:128], device_class=device_class or "", key=secrets.token_hex(32))

    @classmethod
    def at(cls, folder: Path, device: str | None, device_class: str | None) -> Identity:
        """Return who the device is: as enrolled, with what the caller says; made up at the first start.

        Raises:
            AgentError: The file is damaged, or the name is none.
        """
        found = cls.load(folder)
        wanted = found or cls.made_up(device, device_class)
        try:
            wanted = attrs.evolve(
                wanted,
                device=device or wanted.device,
                device_class=wanted.device_class if device_class is None else device_class,
            )
        except ValueError as error:
            raise AgentError("That is no name of a device.", found=device) from error
        if wanted != found:
            wanted.save(folder)
        return wanted

    @classmethod
    def enrol(cls, folder: Path, device: str | None, device_class: str | None, key: Path) -> Identity:
        """Take over the key that the operator made for a device, as hexadecimal text in a file.

        Raises:
            AgentError: The file is none, or no name of a device was given.
        """
        try:
            found = cls.load(folder) or cls.made_up(device, device_class)
            enrolled = attrs.evolve(
                found, device=device or found.device, key=key.read_text(encoding="ascii").strip().lower()
            )
        except (OSError, ValueError) as error:
            raise AgentError(
                "That is no key of a device.",
                where=str(key),
                expected="16 to 64 bytes as hexadecimal text",
                found=type(error).__name__,
            ) from error
        enrolled.save(folder)
        return enrolled

    @classmethod
    def load(cls, folder: Path) -> Identity | None:
        """Return who the device is; None where it is not said yet.

        Raises:
            AgentError: The file is damaged.
        """
        path = folder / "device.json"
        try:
            return decode(cls, read_json(path, 64 << 10), skip_unknown=True)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, DecodeError) as error:
            raise AgentError(
                "It cannot be read who this device is.",
                where=str(path),
                found=f"{type(error).__name__}: {error}",
                hint="Enroll the device again: edgeinfer fleet enroll.",
            ) from error

    def save(self, folder: Path) -> None:
        """Write it, readable for the agent's user alone."""
        path = folder / "device.json"
        replace_file(path, canonical_json(encode(self)), durable=True)
        os.chmod(path, 0o600)  # noqa: PTH101
