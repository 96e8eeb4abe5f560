"""Names that are imported when they are first used, so that a device imports only what it runs."""

from __future__ import annotations

import importlib
from typing import Any

from edgeinfer.errors import MissingPackageError

__all__ = ["attribute_of", "module_of"]


def module_of(name: str) -> Any:
    """Import a module of edgeinfer.

    Raises:
        MissingPackageError: It needs a package that is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing == "edgeinfer":
            raise
        raise MissingPackageError(
            f"{name} needs the package {missing}, which is not installed.",
            found=str(error),
            hint="Models are made where all of edgeinfer is installed: pip install edgeinfer. A device that "
            "only runs them does without (docs/install.md).",
            facts={"package": missing},
        ) from error


def attribute_of(module: str, name: str) -> Any:
    """Return a name of a module of edgeinfer; see `module_of`."""
    return getattr(module_of(module), name)
