"""Options of the ONNX Runtime backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import attrs

from edgeinfer.backends.onnxruntime_.trust import PROVIDER_OPTIONS, SESSION_CONFIG, find_untrusted
from edgeinfer.backends.option_checks import (
    MAX_THREADS,
    as_mapping,
    flag,
    number,
    one_of,
    refuse_option,
    settings,
)

__all__ = ["OnnxRuntimeOptions"]

Provider = tuple[str, Mapping[str, Any]]
_THREADS_HINT = (
    "ONNX Runtime creates so many threads for a minute or more; 0 is one for each core that it may use."
)


def _providers(value: str | Iterable[Any]) -> tuple[Provider, ...]:
    """Accept names and pairs of a name and its options, as ONNX Runtime does."""
    try:
        items = (value,) if isinstance(value, str) else tuple(value)
        pairs = [(item, {}) if isinstance(item, str) else (item[0], dict(item[1])) for item in items]
    except (TypeError, ValueError, LookupError) as error:
        raise refuse_option("providers", "names, or pairs of a name and a mapping", value) from error
    return tuple((str(name), given) for name, given in pairs)


def _check_providers(instance: Any, attribute: Any, value: tuple[Provider, ...]) -> None:
    for _, given in value:
        settings(instance, attribute, given)


@final
@attrs.frozen(kw_only=True)
class OnnxRuntimeOptions:
    """Options of the ONNX Runtime backend.

    Attributes:
        threads: Threads within an operator, at most 256; 0 is one for each core that the loading thread may
            use, and no more than the CPU time that the container may use.
        inter_threads: Threads across operators, for `execution_mode="parallel"`; 0 lets the runtime choose.
        graph_optimization_level: `disable`, `basic`, `extended`, `layout` or `all`.
        execution_mode: `sequential` or `parallel`.
        providers: Execution providers in order of preference, each a name or a pair of name and options. They
            take precedence over the device. The CPU is added for what the others do not take. Their options
            are kept in an artifact where they are known to name no file.
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
            `{"session.set_denormal_as_zero": "1"}`. They are kept in the same way.
    """

    threads: int = attrs.field(default=0, validator=number(0, MAX_THREADS, hint=_THREADS_HINT))
    inter_threads: int = attrs.field(default=0, validator=number(0, MAX_THREADS, hint=_THREADS_HINT))
    graph_optimization_level: str = attrs.field(
        default="all", validator=one_of("disable", "basic", "extended", "layout", "all")
    )
    execution_mode: str = attrs.field(default="sequential", validator=one_of("sequential", "parallel"))
    providers: tuple[Provider, ...] = attrs.field(
        default=(), converter=_providers, validator=_check_providers
    )
    provider_options: Mapping[str, Any] = attrs.field(factory=dict, converter=as_mapping, validator=settings)
    plugin_libraries: Mapping[str, str] = attrs.field(factory=dict, converter=as_mapping, validator=settings)
    memory_arena: bool = attrs.field(default=True, validator=flag())
    memory_pattern: bool = attrs.field(default=True, validator=flag())
    allow_spinning: bool | None = attrs.field(default=None, validator=flag(optional=True))
    int8_activations: bool = attrs.field(default=False, validator=flag())
    session_config: Mapping[str, Any] = attrs.field(factory=dict, converter=as_mapping, validator=settings)

    def portable(self) -> dict[str, Any]:
        """Return what an artifact keeps: all that differs from the defaults, but no files and no code."""
        defaults = OnnxRuntimeOptions()
        kept = {field.name: getattr(self, field.name) for field in attrs.fields(OnnxRuntimeOptions)}
        del kept["plugin_libraries"]
        kept["providers"] = tuple((name, _kept(given, PROVIDER_OPTIONS)) for name, given in self.providers)
        kept["provider_options"] = _kept(self.provider_options, PROVIDER_OPTIONS)
        kept["session_config"] = _kept(self.session_config, SESSION_CONFIG)
        return {name: value for name, value in kept.items() if value != getattr(defaults, name)}

    def not_portable(self) -> tuple[str, ...]:
        """Return the names of what an artifact does not keep."""
        return tuple(find_untrusted(attrs.asdict(self)))


def _kept(given: Mapping[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in allowed}
