"""Packages that are not needed by everyone, imported where they are."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from tessera.errors import UserError


def needed(module: str, extra: str) -> Any:
    """The imported `module`, which comes with the extra `extra` of this package.

    Raises:
        UserError: it is not installed; the command that installs it is named.
    """
    try:
        found: ModuleType = import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UserError(f"{module} is not installed; this needs it: pip install 'tessera-vl[{extra}]'") from error
    return found
