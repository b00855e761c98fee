"""Decoupled cross-attention of IP-Adapter Plus on a diffusers U-Net, and the file layout of its release.

Ye et al. 2023, "IP-Adapter": attention out = Attn(q, K_text, V_text) + scale * Attn(q, K_image, V_image).
The release's file holds `image_proj.*` (the Resampler) and `ip_adapter.N.to_{k,v}_ip.weight` with N = 1, 3, 5, ... over
the U-Net's cross-attentions. Painters of every size are saved in this layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tessera.errors import CheckpointError

HEAD_WIDTH = 64  # of the Resampler; the release never varies it and its file does not say it

# Parts of a Resampler block: the release's name -> diffusers' name. `to_kv` is split into two besides.
_BLOCK_NAMES = {
    "0.norm1": "ln0",
    "0.norm2": "ln1",
    "0.to_q": "attn.to_q",
    "0.to_out": "attn.to_out.0",
    "1.0": "ff.0",
    "1.1": "ff.1.net.0.proj",
    "1.3": "ff.1.net.2",
}
_BLOCK = re.compile(r"layers\.(\d+)\.(0\.norm1|0\.norm2|0\.to_q|0\.to_kv|0\.to_out|1\.0|1\.1|1\.3)\.(weight|bias)")


def install(unet: UNet2DConditionModel, image_tokens: int) -> None:
    """Give every cross-attention of `unet` a second pair of key and value maps, for `image_tokens` image tokens."""
    processors: dict = {}
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            processors[name] = AttnProcessor2_0()
            continue
        attention = unet.get_submodule(name.removesuffix(".processor"))
        processors[name] = IPAdapterAttnProcessor2_0(
            hidden_size=attention.inner_dim,
            cross_attention_dim=attention.cross_attention_dim,
            num_tokens=(image_tokens,),
        ).to(device=unet.device, dtype=unet.dtype)
    unet.set_attn_processor(processors)


def processors(unet: UNet2DConditionModel) -> Iterator[IPAdapterAttnProcessor2_0]:
    """The cross-attentions' processors, in the order in which the release numbers them."""
    for processor in unet.attn_processors.values():
        if isinstance(processor, IPAdapterAttnProcessor2_0):
            yield processor


def set_image_scale(unet: UNet2DConditionModel, scale: float) -> None:
    """How much the image tokens count beside the text. At 0 they are not looked at."""
    for processor in processors(unet):
        processor.scale = [scale]


def _resampler_to_release(projection: IPAdapterPlusImageProjection) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    weights = projection.state_dict()
    to_release = {ours: release for release, ours in _BLOCK_NAMES.items()}
    for name, value in weights.items():
        if not name.startswith("layers."):
            renamed[name] = value
            continue
        _, block, rest = name.split(".", 2)
        if rest == "attn.to_k.weight":
            values = weights[f"layers.{block}.attn.to_v.weight"]
            renamed[f"layers.{block}.0.to_kv.weight"] = torch.cat([value, values])
        elif rest != "attn.to_v.weight":
            part, kind = rest.rsplit(".", 1)
            renamed[f"layers.{block}.{to_release[part]}.{kind}"] = value
    return renamed


def _resampler_from_release(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        found = _BLOCK.fullmatch(name)
        if found is None:
            renamed[name] = value
            continue
        block, part, kind = found.groups()
        if part == "0.to_kv":
            for ours, half in zip(("to_k", "to_v"), value.chunk(2), strict=True):
                renamed[f"layers.{block}.attn.{ours}.weight"] = half
        else:
            renamed[f"layers.{block}.{_BLOCK_NAMES[part]}.{kind}"] = value
    return renamed


def build_resampler(weights: Mapping[str, Tensor]) -> IPAdapterPlusImageProjection:
    """The Resampler that weights of the release's layout (without `image_proj.`) belong to, with these weights.

    Raises:
        CheckpointError: they are not those of a Resampler.
    """
    try:
        hidden, inputs = weights["proj_in.weight"].shape
        projection = IPAdapterPlusImageProjection(
            embed_dims=inputs,
            output_dims=weights["proj_out.weight"].shape[0],
            hidden_dims=hidden,
            depth=sum(name.endswith(".to_q.weight") for name in weights),
            dim_head=HEAD_WIDTH,
            heads=weights["layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH,
            num_queries=weights["latents"].shape[1],
            ffn_ratio=weights["layers.0.1.1.weight"].shape[0] / hidden,
        )
        projection.load_state_dict(_resampler_from_release(weights))
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the image projection is not that of an IP-Adapter Plus ({error}); plain IP-Adapters, which have one"
            " pooled vector instead of patch tokens, do not serve"
        ) from error
    return projection


def adapter_state(unet: UNet2DConditionModel, projection: IPAdapterPlusImageProjection) -> dict[str, Tensor]:
    """Resampler and image key and value maps, in the layout of an IP-Adapter Plus file."""
    state = {f"image_proj.{name}": value for name, value in _resampler_to_release(projection).items()}
    for index, processor in enumerate(processors(unet)):
        for letter, maps in (("k", processor.to_k_ip), ("v", processor.to_v_ip)):
            state[f"ip_adapter.{2 * index + 1}.to_{letter}_ip.weight"] = maps[0].weight
    return {name: value.detach().contiguous() for name, value in state.items()}


def read_adapter(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an IP-Adapter Plus file.

    Raises:
        CheckpointError: the file is missing, pickled, damaged, or something else.
    """
    path = Path(path)
    if path.suffix in {".bin", ".pt", ".pth", ".ckpt"}:
        raise CheckpointError(f"{path} is a pickle, which is never loaded: convert to safetensors")
    if not path.is_file():
        raise CheckpointError(f"there is no IP-Adapter file {path}")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if "image_proj.latents" not in state:
        raise CheckpointError(f"{path} holds no image_proj.latents: it is not an IP-Adapter Plus")
    return state


def attach(unet: UNet2DConditionModel, state: Mapping[str, Tensor]) -> IPAdapterPlusImageProjection:
    """Put an IP-Adapter Plus (tensors as `read_adapter` gives them) on `unet`; returns its Resampler.

    Raises:
        CheckpointError: the adapter belongs to another U-Net.
    """
    parts = {prefix: _under(state, prefix) for prefix in ("image_proj.", "ip_adapter.")}
    projection = build_resampler(parts["image_proj."])
    install(unet, image_tokens=projection.latents.shape[1])
    maps = parts["ip_adapter."]
    expected = {
        f"{2 * index + 1}.to_{letter}_ip.weight": layers[0].weight
        for index, processor in enumerate(processors(unet))
        for letter, layers in (("k", processor.to_k_ip), ("v", processor.to_v_ip))
    }
    ours, given = ({name: tuple(value.shape) for name, value in side.items()} for side in (expected, maps))
    if ours != given:
        name = min(set(ours.items()) ^ set(given.items()))[0]
        raise CheckpointError(
            f"this IP-Adapter belongs to another U-Net: {name} is {given.get(name, 'absent')} in the file,"
            f" {ours.get(name, 'absent')} in the model"
        )
    with torch.no_grad():
        for name, weight in expected.items():
            weight.copy_(maps[name])
    return projection.to(device=unet.device, dtype=unet.dtype)


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
