"""ViT from the layouts that its weights are published in: transformers' ViTModel, of version 5 and before, and the
`blocks.0.attn.qkv` of timm that DeiT, DINO and many others share.

All hold the same tensors under other names, of which one table makes ours. Masked autoencoders and DINOv2 have them
too, and DINOv2 factors on what its blocks add, which go into the weights before them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTConfig as PublishedConfig

from tessera.errors import CheckpointError, reason
from tessera.vision.base import VisionBackbone
from tessera.vision.hf import PublishedBackbone
from tessera.vision.vit import PlainViT, PlainViTConfig
from tessera.weights import load_state, shapes_in, weight_files

HEAD = "head."  # the classifier's weights, beside those of the backbone
HEAD_WIDTH = 64  # in every published size; the layout of timm does not say
PLAIN = ("vit", "vit_mae", "dinov2")  # types of transformers whose blocks are those of a plain ViT
_SCALED = {"1": "attention.o_proj", "2": "mlp.fc2"}  # of a block of DINOv2: what each of its factors is of
_POOLER = "pooler."  # a layer of its own over the class token, which no published classifier reads
_RENAMED = (  # theirs to ours, one after the other
    (r"^(module|vit|backbone)\.", ""),
    (r"^embeddings\.", ""),
    (r"^cls_token$", "class_token"),
    (r"^(position_embeddings|pos_embed)$", "positions.table"),
    (r"^(patch_embeddings\.projection|patch_embed\.proj)\.", "patches."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.([qkvo])_proj\.", r".attn.\1."),
    (r"\.attn\.(query|q)\.", ".attn.qkv.0."),
    (r"\.attn\.(key|k)\.", ".attn.qkv.1."),
    (r"\.attn\.(value|v)\.", ".attn.qkv.2."),
    (r"\.(attention\.output\.dense|attn\.o|attn\.proj)\.", ".attn.out."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", HEAD),
)


def renamed(name: str) -> str:
    """Our name for a tensor of either layout, `attn.qkv.0` to `.2` for queries, keys and values that stand apart; a
    name of neither stays as it is."""
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published layout under our names, those of a classifier under `HEAD`. Queries, keys and
    values become one matrix, a table [1, L, C] becomes [L, C], and the class token a vector."""
    named = {renamed(name): value for name, value in state.items() if not name.removeprefix("vit.").startswith(_POOLER)}
    found = {}
    for name, value in named.items():
        whole = re.sub(r"\.qkv\.[012]\.", ".qkv.", name)
        parts = [named.get(whole.replace(".qkv.", f".qkv.{place}.")) for place in range(3)]
        if whole != name and all(part is not None for part in parts):
            value = torch.cat([part for part in parts if part is not None])
        found[whole] = value.flatten(0, -2) if whole == "positions.table" else value
        if whole == "class_token":
            found[whole] = value.flatten()
    return found


def load_published(path: str | Path) -> tuple[PlainViT, dict[str, Tensor]]:
    """The backbone, in evaluation mode, and the weights of its classifier (`weight`, `bias`; empty without one).

    Args:
        path: a folder as transformers saves it, or a safetensors file with the names of timm.

    Raises:
        CheckpointError: it cannot be read, is a pickle, or of another architecture, with the first names that differ.
    """
    path = Path(path)
    files = weight_files(path) if path.is_dir() else [path]
    for file in files:
        shapes_in(file)  # says in a sentence what is wrong with a damaged file
    state = {name: value for file in files for name, value in load_file(file).items()}
    return assemble(state, path, _from_transformers(path) if path.is_dir() else None)


def assemble(
    published: Mapping[str, Tensor], path: Path, config: PlainViTConfig | None = None
) -> tuple[PlainViT, dict[str, Tensor]]:
    """`load_published` of tensors that were read from `path`; without a configuration their shapes say it."""
    state = from_published(published)
    head = {name.removeprefix(HEAD): value for name, value in state.items() if name.startswith(HEAD)}
    body = {name: value for name, value in state.items() if not name.startswith(HEAD)}
    model = PlainViT(_from_shapes(body, path) if config is None else config)
    load_state(model, body, str(path))
    return model.eval(), head


def as_plain(backbone: VisionBackbone) -> PlainViT | None:
    """The same encoder as a plain ViT, in evaluation mode: a plain one as it is, a published one of PLAIN with its
    weights copied; None for any other architecture."""
    if isinstance(backbone, PlainViT):
        return backbone
    if not isinstance(backbone, PublishedBackbone):
        return None
    theirs = backbone.vision.config
    if theirs.model_type not in PLAIN or getattr(theirs, "use_swiglu_ffn", False):
        return None
    state = {name: value for name, value in backbone.vision.state_dict().items() if not name.endswith(".mask_token")}
    for name in [name for name in state if name.endswith(".lambda1")]:
        block, _, place = name.removesuffix(".lambda1").rpartition(".layer_scale")
        factor, last = state.pop(name), _SCALED[place]
        for part, shape in (("weight", (-1, 1)), ("bias", (-1,))):
            state[f"{block}.{last}.{part}"] = state[f"{block}.{last}.{part}"] * factor.reshape(shape)
    model = PlainViT(_plain_config(theirs))
    load_state(model, from_published(state), f"a {theirs.model_type}")
    nn.Module.to(model, backbone.device, backbone.dtype)  # as model.to, whose own types a checker cannot follow
    return model.eval()


def _from_transformers(folder: Path) -> PlainViTConfig:
    try:
        values, _ = PublishedConfig.get_config_dict(folder, local_files_only=True)
        kind = values.get("model_type")
        if kind != PublishedConfig.model_type:
            raise CheckpointError(f"{folder} holds a {kind!r}, not a {PublishedConfig.model_type!r}")
        theirs: Any = PublishedConfig(**values)
    except CheckpointError:
        raise
    except Exception as error:  # each check of transformers raises its own kind
        raise CheckpointError(f"{folder} has no usable config.json: {reason(error)}") from error
    return _plain_config(theirs)


def _plain_config(theirs: Any) -> PlainViTConfig:
    """Ours for a configuration of PLAIN."""
    ratio = theirs.mlp_ratio if theirs.model_type == "dinov2" else theirs.intermediate_size / theirs.hidden_size
    return PlainViTConfig(
        image_size=theirs.image_size, num_channels=theirs.num_channels, patch_size=theirs.patch_size,
        hidden_size=theirs.hidden_size, num_hidden_layers=theirs.num_hidden_layers,
        num_attention_heads=theirs.num_attention_heads, mlp_ratio=float(ratio),
        activation=theirs.hidden_act, qkv_bias=theirs.qkv_bias, layer_norm_eps=theirs.layer_norm_eps,
    )  # fmt: skip


def _from_shapes(state: Mapping[str, Tensor], path: Path) -> PlainViTConfig:
    """The configuration that tensors speak of, for square pictures."""
    kernel, table, hidden = (state.get(name) for name in ("patches.weight", "positions.table", "blocks.0.mlp.fc1.bias"))
    if kernel is None or table is None or hidden is None or kernel.dim() != 4:
        raise CheckpointError(f"{path} holds no ViT; its first names are {', '.join(sorted(state)[:5])}")
    width, side = len(kernel), round((len(table) - 1) ** 0.5)
    return PlainViTConfig(
        image_size=side * kernel.shape[-1], num_channels=kernel.shape[1], patch_size=kernel.shape[-1],
        hidden_size=width, num_hidden_layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_attention_heads=width // HEAD_WIDTH, mlp_ratio=len(hidden) / width,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
    )  # fmt: skip
