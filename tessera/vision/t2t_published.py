"""T2T-ViT's published weights: the names of the official code (yitu-opensource/T2T-ViT, models/), read into ours.

The released files are pickles (.pth.tar), which are never opened here; their `state_dict_ema`, saved once as
safetensors, loads as it is. They are of the usual scale of attention, head width ** -0.5: main.py evaluates them so.
The factories' `pretrained=True` sets another, C ** -0.5, for which no weights were released.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tessera.errors import UserError
from tessera.vision import registry
from tessera.vision.t2t_vit import ABLATIONS, PUBLISHED, T2TViT, T2TViTConfig
from tessera.weights import load_state, shapes_in, weight_files

HEAD = "head."  # the classifier's weights, beside those of the backbone
TABLE = "positions.table"
DEFAULT = "t2t-vit-14"
RENAMED = (  # theirs to ours, one after the other
    (r"^module\.", ""),  # left by training on several GPUs
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "positions.table"),
    (r"^tokens_to_token\.attention1\.", "tokens.layers.0."),
    (r"^tokens_to_token\.attention2\.", "tokens.layers.1."),
    (r"^tokens_to_token\.", "tokens."),
    (r"^(tokens\.layers\.\d)\.attn\.", r"\1."),
    (r"^(tokens\.layers\.\d)\.w$", r"\1.features"),
    (r"^(tokens\.layers\.\d\.mlp)\.0\.", r"\1.fc1."),
    (r"^(tokens\.layers\.\d\.mlp)\.2\.", r"\1.fc2."),
    (r"^(blocks\.\d+\.attn)\.proj\.", r"\1.out."),
    (r"^(blocks\.\d+\.attn)\.se_layer\.fc\.0\.", r"\1.gate.squeeze."),
    (r"^(blocks\.\d+\.attn)\.se_layer\.fc\.2\.", r"\1.gate.excite."),
    (r"^(blocks\.\d+\.attn)\.([qkv])\.", r"\1.qkv.\2."),
    (r"^(blocks\.\d+\.attn)\.cheap_operation_([qkv])\.", r"\1.cheap.\2."),
    (r"^(blocks\.\d+\.mlp)\.cheap_operation2\.", r"\1.cheap.0."),
    (r"^(blocks\.\d+\.mlp)\.cheap_operation3\.", r"\1.cheap.1."),
    (r"^(blocks\.\d+)\.dense_linear\.", r"\1.grow."),
)


def our_name(theirs: str) -> str:
    """A name of the official code as ours; one that it does not have stays as it is."""
    for pattern, replacement in RENAMED:
        theirs = re.sub(pattern, replacement, theirs)
    return theirs


def from_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the backbone and of the classifier's head (`weight`, `bias`; empty where there is none) from a
    state dict of the official code. Shapes follow: a table [1, L, C] becomes [L, C]; a class token [1, 1, C]
    and a depthwise kernel [C, 1, 1] a vector [C]."""
    renamed = {our_name(name): value for name, value in state.items()}
    head = {name.removeprefix(HEAD): value for name, value in renamed.items() if name.startswith(HEAD)}
    backbone = {name: value for name, value in renamed.items() if not name.startswith(HEAD)}
    for name, value in backbone.items():
        if name == TABLE and value.dim() == 3:
            backbone[name] = value[0]
        elif ".cheap." in name or name == "class_token":
            backbone[name] = value.flatten()
    return backbone, head


def load_published(path: str | Path, name: str | None = None) -> tuple[T2TViT, dict[str, Tensor]]:
    """The backbone with published weights, in evaluation mode, and the weights of its classifier (`weight`, `bias`;
    empty without one).

    The picture size is that of the file's table of positions: 384 pixels for the released T2T-ViT-14 of that size.

    Args:
        path: a safetensors file with the official names, or a folder that holds model.safetensors.
        name: of the backbone; by default the variant that the tensors fit best. They do not tell T2T-ViT-14 from its
            "resnext" shape, which has other heads: the former is taken.

    Raises:
        UserError: no backbone has this name.
        CheckpointError: the file is absent, damaged, pickled, or of another architecture, with the first names that
            differ.
    """
    path = Path(path)
    files = weight_files(path) if path.is_dir() else [path]
    for file in files:
        shapes_in(file)  # says in a sentence what is wrong with a damaged file
    weights, head = from_official({key: value for file in files for key, value in load_file(file).items()})
    config = registry.config(name or _nearest(weights))
    if not isinstance(config, T2TViTConfig):
        raise UserError(f"{name} is no T2T-ViT; name one of its variants, such as {DEFAULT}")
    if TABLE in weights:
        config.image_size = math.isqrt(len(weights[TABLE]) - 1) * config.tile
    backbone = T2TViT(config)
    load_state(backbone, weights, str(path))
    return backbone.eval(), head


def _nearest(weights: Mapping[str, Tensor]) -> str:
    """The variant that shares most tensors with these."""
    found = {(name, value.shape) for name, value in weights.items()}

    def foreign(name: str) -> int:
        with torch.device("meta"):
            wanted = {(key, value.shape) for key, value in registry.create(name).state_dict().items()}
        return len(wanted ^ found)

    return min([DEFAULT, *PUBLISHED, *ABLATIONS], key=foreign)
