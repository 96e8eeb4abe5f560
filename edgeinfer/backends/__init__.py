"""Adapters to runtimes, one file each. Calling the package lists what is registered: `edgeinfer.backends()`.

`edgeinfer.backends` is at once the folder of the adapters and, as DESIGN.md has it, a function. So that
importing an adapter does not take the function's place, the module itself is callable.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeinfer.backends.registry import BackendEntry


class _CallableModule(ModuleType):
    def __call__(self) -> Mapping[str, BackendEntry]:
        """List the registered backends by name; see `edgeinfer.backends.registry.backends`."""
        from edgeinfer.backends.registry import backends

        return backends()


sys.modules[__name__].__class__ = _CallableModule
