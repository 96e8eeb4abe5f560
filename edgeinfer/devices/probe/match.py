"""Which profile of the catalog describes a machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgeinfer.devices.catalog import Profiles
from edgeinfer.devices.device_profile import DeviceProfile

__all__ = ["matching_profile"]

# What a board or processor calls itself, with the profile; the first that is contained counts.
_BY_NAME = {
    "Raspberry Pi 5": "raspberry-pi-5",
    "Raspberry Pi 4": "raspberry-pi-4",
    "Raspberry Pi 3 Model B Plus": "raspberry-pi-3b-plus",
    "N100": "intel-n100",
    "N97": "intel-n97",
    "N305": "intel-i3-n305",
    "x7425E": "intel-atom-x7425e",
    "Cortex-A78": "arm-cortex-a78",
    "Cortex-A76": "arm-cortex-a76",
    "Cortex-A72": "arm-cortex-a72",
    "Cortex-A55": "arm-cortex-a55",
    "Cortex-A53": "arm-cortex-a53",
}


def matching_profile(
    catalog: Profiles,
    *,
    board: str,
    part: str,
    power_mode: str,
    memory_bytes: int | None,
    gpus: Sequence[str],
    cpu: str,
    features: Collection[str],
    level: int | None,
) -> DeviceProfile | None:
    """Return the profile that says most about a machine, or None.

    A module is known by its part number, a card or board by its name; of any other machine only the general
    profile of its instruction set applies.
    """
    if part:
        module = _by_part(catalog, part, memory_bytes)
        if module is not None:
            known = power_mode in catalog[module].modes
            return catalog[f"{module}@{power_mode}"] if known else catalog[module]
    for gpu in gpus:
        found = _by_description(catalog, gpu)
        if found is not None:
            return found
    for word, name in _BY_NAME.items():
        if (word in board or word in cpu) and name in catalog:
            return catalog[name]
    if level is None or level < 2:
        return None
    vnni = "avx512_vnni" in features or "avx_vnni" in features
    return catalog["x86-vnni" if vnni else f"x86-64-v{level}"]


def _by_part(catalog: Profiles, part: str, memory_bytes: int | None) -> str | None:
    fits = [name for name, profile in catalog.items() if part in str(_value(profile, "part"))]
    if len(fits) > 1 and memory_bytes is not None:  # one part number, two sizes
        fits.sort(key=lambda name: abs((catalog[name].memory_bytes or 0) - memory_bytes))
    return fits[0] if fits else None


def _value(profile: DeviceProfile, name: str) -> object:
    fact = profile.facts.get(name)
    return fact.value if fact is not None else ""


def _by_description(catalog: Profiles, gpu: str) -> DeviceProfile | None:
    """Return the card whose name is contained in what the driver calls it, the longest first."""
    wanted = f" {gpu.lower()} "
    cards = sorted(
        ((_plain(profile.description), name) for name, profile in catalog.items() if profile.unit == "gpu"),
        key=lambda pair: -len(pair[0]),
    )
    return next((catalog[name] for words, name in cards if f" {words} " in wanted), None)


def _plain(description: str) -> str:
    return description.lower().removeprefix("nvidia ").removesuffix(" generation").removesuffix(" 12gb")
