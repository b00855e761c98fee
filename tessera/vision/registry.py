"""Backbones by name, so that any of them can be the eyes of any model.

    backbone = create("t2t-vit-14", image_size=64)

A new architecture calls `register` for each of its named sizes at the end of its module, and `register_type` for a
published layout that it reads, and adds that module to ARCHITECTURES. The modules are imported with the first look-up.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from tessera.errors import CheckpointError, UserError, nearest, reason
from tessera.vision.base import VisionBackbone
from tessera.weights import model_type, read_model

ARCHITECTURES: tuple[str, ...] = (
    "tessera.vision.hf",
    "tessera.vision.vit",
    "tessera.vision.t2t_vit",
    "tessera.vision.cvt",
    "tessera.vision.cvt_published",
)

_factories: dict[str, Callable[..., PreTrainedConfig]] = {}
_loaders: dict[str, Callable[[Path], VisionBackbone]] = {}


def register(name: str, factory: Callable[..., PreTrainedConfig]) -> None:
    """Let `name` stand for the configuration that `factory(**changes)` makes, `functools.partial(Config, depth=14)`
    for instance. Its class is known to AutoConfig, and its model to AutoModel."""
    _factories[name] = factory


def register_type(model_type: str, load: Callable[[Path], VisionBackbone]) -> None:
    """Let `load` read the folders whose config.json names this type of transformers."""
    _loaders[model_type] = load


def import_architectures() -> None:
    """Import the modules of all architectures, so that AutoConfig and AutoModel know them too."""
    for module in ARCHITECTURES:
        importlib.import_module(module)


def names() -> list[str]:
    """All named backbones, sorted."""
    import_architectures()
    return sorted(_factories)


def config(name: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a named backbone with some of its fields changed.

    Raises:
        UserError: no backbone has this name, or no field that of a change, with the nearest one; or a value that the
            architecture refuses.
    """
    import_architectures()
    if name not in _factories:
        raise UserError(f"no backbone is named {name!r}{nearest(name, _factories)}")
    fields = [field.name for field in dataclasses.fields(_factories[name]())]
    for change in changes:
        if change not in fields:
            raise UserError(f"{name} has no field {change!r}{nearest(change, fields)}")
    try:
        return _factories[name](**changes)
    except StrictDataclassError as error:  # a value of a wrong type
        raise UserError(f"{name} cannot be built so: {reason(error)}") from error


def create(name: str, **changes: Any) -> VisionBackbone:
    """A named backbone with new weights, or the one in a folder with its weights, in evaluation mode.

    Args:
        name: of those in `names()`, or a folder: a published encoder as transformers saves it (CLIPVisionModel,
            ViTModel, ViTMAEModel, Dinov2Model, CvtModel), or a backbone of ours.
        changes: fields of a named backbone's configuration.

    Raises:
        UserError: as `config`, or changes to a folder.
        CheckpointError: no such folder, one of another architecture, or damaged.
    """
    if "/" not in name and not Path(name).is_dir():
        return AutoModel.from_config(config(name, **changes))
    if changes:
        raise UserError(f"{name} is a folder, whose backbone is as it is; {', '.join(changes)} cannot be changed")
    import_architectures()
    folder = Path(name)
    kind = model_type(folder)
    return _loaders[kind](folder) if kind in _loaders else _ours(folder, kind)


def _ours(folder: Path, kind: str) -> VisionBackbone:
    """A backbone that `save_pretrained` wrote."""
    try:
        found: Any = AutoModel._model_mapping[type(AutoConfig.for_model(kind))]
    except (KeyError, ValueError):
        found = None
    if found is None or not issubclass(found, VisionBackbone):
        raise CheckpointError(
            f"{folder} holds a {kind!r}, which is no image encoder of those known: {', '.join(sorted(_loaders))} and"
            " Tessera's own"
        )
    return read_model(found, folder, local_files_only=True)
