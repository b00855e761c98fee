"""CvT from the layouts that its weights are published in: transformers' CvtModel, and the official repository's.

Both hold the same tensors under other names, of which one table makes ours. Neither tells the other's activation:
official weights are for quick_gelu, transformers runs them with gelu.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import CvtConfig

from tessera.errors import CheckpointError, reason
from tessera.vision.cvt import CvT, CvTConfig
from tessera.vision.registry import register_type
from tessera.weights import load_state, shapes_in, weight_files

HEAD = "head."  # the classifier's weights, beside those of the backbone
HEAD_WIDTH = 64  # in every published size
_RENAMED = (  # theirs to ours, one after the other
    (r"^(module|cvt)\.", ""),
    (r"^encoder\.stages\.", "stages."),
    (r"^stage(\d+)\.", r"stages.\1."),
    (r"\.embedding\.convolution_embeddings\.projection\.", ".conv."),
    (r"\.embedding\.convolution_embeddings\.normalization\.", ".norm."),
    (r"\.patch_embed\.proj\.", ".conv."),
    (r"\.patch_embed\.norm\.", ".norm."),
    (r"\.cls_token$", ".class_token"),
    (r"\.layers\.", ".blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attn\.conv_proj_q\.", ".attn.query_map."),
    (r"\.attn\.conv_proj_k\.", ".attn.key_map."),
    (r"\.attn\.conv_proj_v\.", ".attn.value_map."),
    (r"_map\.bn\.", "_map.norm."),
    (r"\.attn\.proj_q\.", ".attn.query."),
    (r"\.attn\.proj_k\.", ".attn.key."),
    (r"\.attn\.proj_v\.", ".attn.value."),
    (r"\.attn\.proj\.", ".attn.out."),
    (r"\.attention\.attention\.convolution_projection_(\w+)\.convolution_projection\.", r".attn.\1_map."),
    (r"_map\.convolution\.", "_map.conv."),
    (r"_map\.normalization\.", "_map.norm."),
    (r"\.attention\.attention\.projection_", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.out."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", HEAD),
)


def renamed(name: str) -> str:
    """Our name for a tensor of either layout; a name of neither stays as it is."""
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of either layout under our names, those of a classifier under `HEAD`. A class token [1, 1, C] becomes
    [C]."""
    named = {renamed(name): value for name, value in state.items()}
    return {name: value.flatten() if name.endswith(".class_token") else value for name, value in named.items()}


def load_published(path: str | Path) -> tuple[CvT, dict[str, Tensor]]:
    """The backbone, in evaluation mode, and the weights of its classifier (`weight`, `bias`; empty without one).

    A bare CvtModel has no last norm; ours then multiplies by 1 and adds nothing.

    Args:
        path: a folder as transformers saves it, or a safetensors file with the names of the official repository.

    Raises:
        CheckpointError: it cannot be read, is a pickle, or of another architecture, with the first names that differ.
    """
    path = Path(path)
    files = weight_files(path) if path.is_dir() else [path]
    for file in files:
        shapes_in(file)  # says in a sentence what is wrong with a damaged file
    state = from_published({name: value for file in files for name, value in load_file(file).items()})
    head = {name.removeprefix(HEAD): value for name, value in state.items() if name.startswith(HEAD)}
    body = {name: value for name, value in state.items() if not name.startswith(HEAD)}
    model = CvT(_from_transformers(path) if path.is_dir() else _from_shapes(body, path))
    if not any(name.startswith("norm.") for name in body):
        body |= {f"norm.{name}": value for name, value in model.norm.state_dict().items()}
    load_state(model, body, str(path))
    return model.eval(), head


def from_config(theirs: CvtConfig) -> CvTConfig:
    """The configuration of a CvtModel as ours, with the exact GELU that it is run with.

    Raises:
        CheckpointError: it has what no published CvT has.
    """
    alike = ("mlp_ratio", "stride_kv", "qkv_projection_method", "kernel_qkv", "padding_kv", "stride_q", "padding_q")
    values: dict[str, list[Any]] = {name: sorted(set(getattr(theirs, name))) for name in alike}
    wanted = {
        "qkv_projection_method": ["dw_bn"],
        "kernel_qkv": [3],
        "padding_kv": [1],
        "stride_q": [1],
        "padding_q": [1],
    }
    odd = [name for name in alike if len(values[name]) != 1 or wanted.get(name, values[name]) != values[name]]
    odd += ["cls_token"] * any(theirs.cls_token[:-1]) + ["qkv_bias"] * (not all(theirs.qkv_bias))
    if odd:
        raise CheckpointError(
            f"this CvT has {odd[0]} {list(getattr(theirs, odd[0]))}; those that load have biases, 3 x 3 convolutions"
            " before keys and values, alike in all stages, and a class token in the last stage at most"
        )
    return CvTConfig(
        num_channels=theirs.num_channels, widths=theirs.embed_dim, heads=theirs.num_heads, depths=theirs.depth,
        kernels=theirs.patch_sizes, strides=theirs.patch_stride, paddings=theirs.patch_padding,
        mlp_ratio=values["mlp_ratio"][0], key_stride=values["stride_kv"][0], drop_path=theirs.drop_path_rate,
        class_token=bool(theirs.cls_token[-1]), activation="gelu",
    )  # fmt: skip


def _from_transformers(folder: Path) -> CvTConfig:
    try:
        values, _ = CvtConfig.get_config_dict(folder, local_files_only=True)
        if not values:
            raise CheckpointError(f"{folder} has no config.json")
        kind = values.get("model_type")
        if kind != CvtConfig.model_type:
            raise CheckpointError(f"{folder} holds a {kind!r}, not a {CvtConfig.model_type!r}")
        return from_config(CvtConfig(**values))
    except CheckpointError:
        raise
    except Exception as error:  # each check of transformers raises its own kind
        raise CheckpointError(f"{folder} has no usable config.json: {reason(error)}") from error


def _from_shapes(state: Mapping[str, Tensor], path: Path) -> CvTConfig:
    """The configuration that tensors with the official names speak of; its strides are those of all published sizes."""
    kernels = [state.get(f"stages.{stage}.conv.weight") for stage in range(3)]
    if any(kernel is None or kernel.dim() != 4 for kernel in kernels):
        raise CheckpointError(
            f"{path} holds no CvT, which has three stages; its first names are {', '.join(sorted(state)[:5])}"
        )
    shapes = [kernel.shape for kernel in kernels if kernel is not None]
    blocks = {tuple(name.split(".")[1:4:2]) for name in state if ".blocks." in name}
    return CvTConfig(
        num_channels=shapes[0][1], widths=[shape[0] for shape in shapes], kernels=[shape[-1] for shape in shapes],
        heads=[shape[0] // HEAD_WIDTH for shape in shapes],
        depths=[sum(stage == str(one) for stage, _ in blocks) for one in range(3)],
        class_token="stages.2.class_token" in state,
    )  # fmt: skip


register_type(CvtConfig.model_type, lambda folder: load_published(folder)[0])
