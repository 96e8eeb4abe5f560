"""`python -m edgeinfer`: the same as the command `edgeinfer`."""

from __future__ import annotations

import sys

from edgeinfer.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
