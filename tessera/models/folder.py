"""A model folder, looked at before anything is built from it; its configuration is read strictly.

In configuration classes that are ours a key that does not exist is refused, with the nearest one that does: a misspelt
field would else silently keep its default. Configurations of transformers' own classes inside them keep what they do
not know, as they do everywhere; values of a wrong type are refused in all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec

from tessera.errors import CheckpointError, nearest, reason
from tessera.weights import Model, check_weights, read_model

_WRITTEN = {"transformers_version", "torch_dtype"}  # beside the fields, transformers writes these


def read_config(folder: Path, kind: type[PreTrainedConfig]) -> Any:
    """The configuration that `folder` holds, of class `kind`.

    Raises:
        CheckpointError: it is missing, no JSON, of another model, asks for code of its own, has an unknown key or a
            wrong value.
    """
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from None
    _check_keys(values, kind, str(file))
    try:
        return kind.from_dict(values)
    except Exception as error:  # each check of transformers raises its own kind
        raise CheckpointError(f"{file}: {reason(error)}") from error


def check_folder(folder: Path, kind: type[PreTrainedModel]) -> Any:
    """The configuration in `folder`, once the weights there are known to be those of the `kind` that it describes.

    The model is laid out on the meta device only: one of a size that no one meant never takes memory.

    Raises:
        CheckpointError: as `read_config` and `check_weights`, or no model can be built so.
    """
    assert kind.config_class is not None
    config = read_config(folder, kind.config_class)
    try:
        with torch.device("meta"):
            model = kind(config)
    except Exception as error:  # widths that do not divide, names of functions that do not exist, and their like
        raise CheckpointError(f"{folder / 'config.json'} describes no model: {reason(error)}") from error
    check_weights(model, folder)
    return config


def read_folder(folder: Path, kind: type[Model], dtype: torch.dtype, device: str | None = None) -> Model:
    """The model in `folder` with its weights, in evaluation mode, once `check_folder` has passed it.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: as `check_folder` and `read_model`.
    """
    model = read_model(kind, folder, dtype, config=check_folder(folder, kind))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.nn.Module.to(model, place)  # as model.to, whose own types a checker cannot follow
    return model


def _check_keys(values: Any, kind: type[PreTrainedConfig], place: str) -> None:
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{place} is a {type(values).__name__}, not an object with the fields of {kind.__name__}")
    given = values.get("model_type", kind.model_type)
    if given != kind.model_type:
        raise CheckpointError(f"{place} is of a model of type {given!r}, not {kind.model_type!r}")
    if "auto_map" in values:
        raise CheckpointError(f"{place} asks for code of its own (auto_map); code from a model folder is never run")
    known = {field.name for field in dataclasses.fields(kind)} | kind().to_dict().keys() | _WRITTEN
    for name in values:
        if name not in known:
            raise CheckpointError(f"{place} has an unknown key {name!r}{nearest(name, known)}")
    for name, spec in kind.sub_configs_defaults.items():
        inner = _class_of(spec, values.get(name))
        if inner is not None:
            _check_keys(values[name], inner, f"{name} in {place}")


def _class_of(spec: SubConfigSpec, values: Any) -> type[PreTrainedConfig] | None:
    """The class of a configuration inside another, where it is there and the class one of ours."""
    if values is None:
        return None
    kind = spec.config_class
    if kind is AutoConfig and isinstance(values, Mapping):
        try:
            kind = CONFIG_MAPPING[values.get("model_type", spec.model_type)]
        except KeyError:  # transformers says so, with the types that it knows
            return None
    return kind if kind.__module__.split(".")[0] == __name__.split(".")[0] else None
