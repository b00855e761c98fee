"""Gymnasium environments by id, ours and those of installed packages, so that a policy can see and be filmed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tessera.errors import UserError, nearest, reason
from tessera.extras import needed

OWN = {"tessera": "tessera.data.worlds.tabletop"}  # namespace -> the module that registers its environments
# What makes environments of a namespace show pictures and the state of the robot.
SEEING: dict[str, dict[str, Any]] = {"gym_pusht": {"obs_type": "pixels_agent_pos"}}


def open_env(name: str) -> Any:
    """The environment of that id, which renders pictures. A package is imported where its name is the namespace, as in
    gym_pusht/PushT-v0.

    Raises:
        UserError: there is none, with the nearest; gymnasium is not installed; or the environment cannot be made.
    """
    gymnasium = needed("gymnasium", "robot")
    space = name.partition("/")[0]
    module = OWN.get(space, space)
    if "/" in name and name not in gymnasium.registry and module.isidentifier() | (space in OWN) and find_spec(module):
        import_module(module)
    if name not in gymnasium.registry:
        import_module(OWN["tessera"])
        raise UserError(
            f"there is no environment {name!r}{nearest(name, list(gymnasium.registry))}; the package that it comes with"
            " must be installed"
        )
    try:
        return gymnasium.make(name, render_mode="rgb_array", **SEEING.get(space, {}))
    except Exception as error:  # each environment fails in its own way: a missing package, an option it does not take
        raise UserError(f"the environment {name} cannot be made: {reason(error)}") from error
