"""Token reducers by name.

reducer = create("nearest", centres="strided", iterations=3)
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tessera.errors import UserError, nearest
from tessera.reduce.base import Reducer
from tessera.reduce.grids import DCT, Pool
from tessera.reduce.merging import Nearest, ToMe
from tessera.reduce.selecting import EViT, Prune, RandomDrop
from tessera.reduce.transforming import Column, Projection, Row

REDUCERS: dict[str, type[Reducer]] = {
    kind.name: kind for kind in (RandomDrop, Prune, EViT, ToMe, Nearest, Pool, DCT, Row, Column, Projection)
}
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Centres": (str,),
    "Norm": (str,),
}  # of options, as their annotations say


def options_of(name: str) -> list[str]:
    """Names of the options of a reducer.

    Raises:
        UserError: no reducer has this name, with the nearest one.
    """
    if name not in REDUCERS:
        raise UserError(f"there is no token reducer {name!r}{nearest(name, REDUCERS)}")
    return [field.name for field in dataclasses.fields(REDUCERS[name])]  # type: ignore[arg-type]


def create(name: str, **options: Any) -> Reducer:
    """The reducer of this name.

    Raises:
        UserError: no reducer has this name, or no such option, with the nearest one; or a value that is refused.
    """
    known = options_of(name)
    types = {field.name: str(field.type) for field in dataclasses.fields(REDUCERS[name])}  # type: ignore[arg-type]
    for option, value in options.items():
        if option not in known:
            raise UserError(f"the reducer {name!r} has no option {option!r}{nearest(option, known)}")
        wanted = types[option]
        if not isinstance(value, _TYPES[wanted]) or (isinstance(value, bool) and wanted != "bool"):
            raise UserError(f"{option} of the reducer {name!r} cannot be {value!r}; it is of type {wanted}")
    return REDUCERS[name](**options)
