"""Stable Diffusion 1.5 with IP-Adapter Plus, from the folders and files that their releases consist of."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from transformers import AutoTokenizer, CLIPTextModel, CLIPVisionModelWithProjection

from tessera.errors import CheckpointError, reason
from tessera.models.diffusion import adapter
from tessera.models.diffusion.painter import Painter, load_parts

UNET = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}  # the rest is diffusers' default
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
RESAMPLER = {
    "embed_dims": 1280, "output_dims": 768, "hidden_dims": 768, "depth": 4,
    "dim_head": adapter.HEAD_WIDTH, "heads": 12, "num_queries": 16,
}  # fmt: skip


def component_sizes() -> dict[str, int]:
    """Parameters of each part at published size, counted on the meta device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
        vae = AutoencoderKL(**VAE)
        resampler = IPAdapterPlusImageProjection(**RESAMPLER)
        plain = _count(unet)
        adapter.install(unet, RESAMPLER["num_queries"])
    return {"unet": plain, "vae": _count(vae), "resampler": _count(resampler), "image_maps": _count(unet) - plain}


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def load_published(
    folder: str | Path,
    adapter_file: str | Path,
    image_encoder: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Painter:
    """A Painter from a Stable Diffusion folder and an IP-Adapter Plus file.

    Args:
        folder: unet/, vae/, scheduler/, text_encoder/ and tokenizer/ as `StableDiffusionPipeline` saves them.
        adapter_file: for instance `ip-adapter-plus_sd15.safetensors`.
        image_encoder: folder of the adapter's CLIP image encoder; by default `image_encoder` beside its file.

    Raises:
        CheckpointError: a part is missing, damaged, pickled, or does not fit the others.
    """
    folder, adapter_file = Path(folder), Path(adapter_file)
    encoder = Path(image_encoder) if image_encoder is not None else adapter_file.parent / "image_encoder"
    state = adapter.read_adapter(adapter_file)
    unet, vae, scheduler = load_parts(folder, dtype)
    projection = adapter.attach(unet, state)
    null_text, null_patches = _empty_prompt(folder, dtype), _zero_picture(encoder, dtype)
    if null_patches.shape[-1] != projection.proj_in.in_features:
        raise CheckpointError(
            f"the image encoder {encoder} gives states {null_patches.shape[-1]} wide; the adapter {adapter_file}"
            f" takes {projection.proj_in.in_features}"
        )
    return Painter(unet, vae, scheduler, projection, null_text, null_patches).eval()


@torch.no_grad()
def _empty_prompt(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """Text states of the empty prompt, padded to the encoder's length, [T, D]."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", use_safetensors=True, dtype=dtype, local_files_only=True
        )
    except Exception as error:  # a damaged vocabulary raises the bare class
        raise CheckpointError(f"{folder} has no usable tokenizer/ and text_encoder/: {reason(error)}") from error
    length = encoder.config.max_position_embeddings
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoder(tokens.input_ids).last_hidden_state[0]


@torch.no_grad()
def _zero_picture(encoder: Path, dtype: torch.dtype) -> torch.Tensor:
    """Penultimate states of the all-zero picture, [N, V], which IP-Adapter Plus takes for no picture."""
    try:
        model = CLIPVisionModelWithProjection.from_pretrained(
            encoder, use_safetensors=True, dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"there is no usable image encoder at {encoder}: {reason(error)}") from error
    side = model.config.image_size
    zeros = torch.zeros((1, 3, side, side), dtype=dtype)  # type: ignore[arg-type]
    return model(zeros, output_hidden_states=True).hidden_states[-2][0]
