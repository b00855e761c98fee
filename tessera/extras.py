"""Packages that not everyone needs, imported only where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tessera.errors import UserError


def needed(module: str, extra: str) -> Any:
    """The imported `module`, of a package that comes with the extra `extra` of this one.

    Raises:
        UserError: it is not installed; the command that installs it is named.
    """
    package = module.partition(".")[0]
    try:
        import_module(package)
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(f"{package} is not installed; this needs it: pip install 'tessera-vl[{extra}]'") from error
