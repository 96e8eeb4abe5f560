"""Options of the ONNX Runtime backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import attrs

__all__ = ["OnnxRuntimeOptions"]

_FLAG = attrs.validators.instance_of(bool)
_COUNT = attrs.validators.and_(attrs.validators.instance_of(int), attrs.validators.ge(0))
Provider = tuple[str, Mapping[str, Any]]


def _providers(value: str | Iterable[Any]) -> tuple[Provider, ...]:
    """Accept names and pairs of a name and its options, as ONNX Runtime does."""
    if isinstance(value, str):
        value = (value,)
    found: list[Provider] = []
    for item in value:
        name, given = (item, {}) if isinstance(item, str) else item
        found.append((str(name), dict(given)))
    return tuple(found)


def _mapping(value: Mapping[str, Any]) -> dict[str, Any]:
    return dict(value)


@final
@attrs.frozen(kw_only=True)
class OnnxRuntimeOptions:
    """Options of the ONNX Runtime backend.

    Attributes:
        threads: Threads within an operator; 0 is one for each core that the loading thread may use.
        inter_threads: Threads across operators, for `execution_mode="parallel"`; 0 lets the runtime choose.
        graph_optimization_level: `disable`, `basic`, `extended`, `layout` or `all`.
        execution_mode: `sequential` or `parallel`.
        providers: Execution providers in order of preference, each a name or a pair of name and options. They
            take precedence over the device. The CPU is added for what the others do not take.
        provider_options: Options of the device's provider, where `providers` is not given.
        plugin_libraries: Libraries of plugin providers by the name to register them under. They are code that
            is loaded into the process, so they are never taken from an artifact: give them to `load`.
        memory_arena: Keep memory between runs instead of giving it back.
        memory_pattern: Plan memory for fixed shapes in one block.
        allow_spinning: Whether idle threads spin: quicker wake-up, at the price of CPU time and power. None
            is the runtime's default, to spin.
        int8_activations: Fuse Q/DQ with int8 activations into int8 kernels (`session.qdqisint8allowed`); on
            x86 they stay float otherwise. uint8 activations need no option.
        session_config: Further entries of the session's configuration, such as
            `{"session.set_denormal_as_zero": "1"}`.
    """

    threads: int = attrs.field(default=0, validator=_COUNT)
    inter_threads: int = attrs.field(default=0, validator=_COUNT)
    graph_optimization_level: str = attrs.field(
        default="all", validator=attrs.validators.in_(("disable", "basic", "extended", "layout", "all"))
    )
    execution_mode: str = attrs.field(
        default="sequential", validator=attrs.validators.in_(("sequential", "parallel"))
    )
    providers: tuple[Provider, ...] = attrs.field(default=(), converter=_providers)
    provider_options: Mapping[str, Any] = attrs.field(factory=dict, converter=_mapping)
    plugin_libraries: Mapping[str, str] = attrs.field(factory=dict, converter=_mapping)
    memory_arena: bool = attrs.field(default=True, validator=_FLAG)
    memory_pattern: bool = attrs.field(default=True, validator=_FLAG)
    allow_spinning: bool | None = attrs.field(default=None, validator=attrs.validators.optional(_FLAG))
    int8_activations: bool = attrs.field(default=False, validator=_FLAG)
    session_config: Mapping[str, Any] = attrs.field(factory=dict, converter=_mapping)

    def portable(self) -> dict[str, Any]:
        """Return what an artifact keeps: all that differs from the defaults, but no code to load."""
        defaults = OnnxRuntimeOptions()
        kept = {field.name: getattr(self, field.name) for field in attrs.fields(OnnxRuntimeOptions)}
        del kept["plugin_libraries"]
        return {name: value for name, value in kept.items() if value != getattr(defaults, name)}
