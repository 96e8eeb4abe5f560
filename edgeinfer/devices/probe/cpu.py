"""The processor: its features, cores, clocks and governors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import final

import attrs

from edgeinfer.devices.probe.tree import Tree, cores_of, pairs
from edgeinfer.values import as_frozenset, as_tuple

__all__ = ["Cpu", "parse_cpuinfo", "read_cpu", "x86_level"]

# Our name of a feature by the kernel's: arch/x86/include/asm/cpufeatures.h and arch/arm64/kernel/cpuinfo.c.
_X86 = {
    "sse4_2": "sse4.2",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
}
_ARM = {
    "asimd": "neon",
    "neon": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
# What the x86-64 psABI asks for at each level, by the kernel's names.
_LEVELS = {
    2: {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
    3: {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    4: {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
# (implementer, part) of /proc/cpuinfo; gcc's aarch64-cores.def has the same numbers.
_ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}


@final
@attrs.frozen(kw_only=True)
class Cpu:
    """A processor.

    Attributes:
        model: Its name; of an Arm machine the names of its cores.
        architecture: `x86_64`, `aarch64`, ….
        features: What it computes with: `avx2`, `avx512f`, `avx512_vnni`, `avx_vnni`, `amx_int8`,
            `amx_bf16`; `neon`, `fp16`, `dotprod`, `i8mm`, `bf16`, ….
        level: The x86-64 level, 1 to 4; None elsewhere.
        cores: The cores that are online.
        isolated: Those that the kernel keeps free of other work.
        max_mhz: The highest clock of any core, or None.
        governors: What sets the clocks, such as `powersave`; several where cores differ.
    """

    model: str = ""
    architecture: str = ""
    features: frozenset[str] = attrs.field(default=frozenset(), converter=as_frozenset)
    level: int | None = None
    cores: tuple[int, ...] = attrs.field(default=(), converter=as_tuple)
    isolated: tuple[int, ...] = attrs.field(default=(), converter=as_tuple)
    max_mhz: float | None = None
    governors: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Read /proc/cpuinfo.

    Returns:
        The processor's name, and the kernel's names of the features that all cores have.
    """
    names: Counter[str] = Counter()
    flags: list[frozenset[str]] = []
    implementer = 0
    for key, value in pairs(text):
        if key == "model name" and "rev" not in value:  # "ARMv8 Processor rev 1 (v8l)" says nothing
            names[value] += 1
        elif key == "CPU implementer":
            implementer = _hexadecimal(value)
        elif key == "CPU part":
            names[_ARM_CORES.get((implementer, _hexadecimal(value)), f"Arm core {value}")] += 1
        elif key in ("flags", "Features"):
            flags.append(frozenset(value.split()))
    arm = any(name.startswith(("Cortex", "Neoverse", "Arm", "Carmel", "Denver")) for name in names)
    model = ", ".join(f"{count}x {name}" for name, count in names.items()) if arm else "".join([*names][:1])
    return model, frozenset.intersection(*flags) if flags else frozenset()


def _hexadecimal(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0


def x86_level(flags: Iterable[str]) -> int:
    """Return the x86-64 level (psABI) that the kernel's flags amount to: 1 to 4."""
    level = 1
    have = set(flags)
    for step, needs in _LEVELS.items():
        if not needs <= have:
            break
        level = step
    return level


def read_cpu(tree: Tree, architecture: str) -> Cpu:
    """Read the processor's description."""
    text = tree.read("/proc/cpuinfo")
    model, flags = parse_cpuinfo(text)
    x86 = architecture in ("x86_64", "AMD64", "i686")
    known = _X86 if x86 else _ARM
    base = "/sys/devices/system/cpu"
    cores = cores_of(tree.read(f"{base}/online")) or _numbered(text)
    clocks = [tree.number(f"{base}/cpu{core}/cpufreq/cpuinfo_max_freq") for core in cores]
    governors = [tree.read(f"{base}/cpu{core}/cpufreq/scaling_governor") for core in cores]
    return Cpu(
        model=model,
        architecture=architecture,
        features={ours for theirs, ours in known.items() if theirs in flags},
        level=x86_level(flags) if x86 and flags else None,
        cores=cores,
        isolated=cores_of(tree.read(f"{base}/isolated")),
        max_mhz=max((clock / 1e3 for clock in clocks if clock), default=None),
        governors=tuple(dict.fromkeys(filter(None, governors))),
    )


def _numbered(text: str) -> tuple[int, ...]:
    return tuple(int(value) for key, value in pairs(text) if key == "processor" and value.isdigit())
