"""Painters and Stable Diffusion folders of tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from tessera.models.diffusion import Painter, adapter

WIDTH, WORDS, PATCHES = 32, 6, 17  # channels of a condition, words, class token and 4 x 4 patches
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 1,
    "cross_attention_dim": WIDTH,
}


def unet(channels: int, extra: int, side: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(sample_size=side, in_channels=channels + extra, out_channels=channels, **BLOCKS).eval()


def resampler(inputs: int, depth: int = 1) -> IPAdapterPlusImageProjection:
    return IPAdapterPlusImageProjection(
        embed_dims=inputs, output_dims=WIDTH, hidden_dims=WIDTH, depth=depth, heads=1, num_queries=4
    )


def mini_painter(seed: int = 0) -> Painter:
    """4 latent channels of 8 x 8, 8 position channels, 4 picture tokens."""
    torch.manual_seed(seed)
    net = unet(4, 8, 8)
    adapter.install(net, 4)
    vae = AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(0, 1, 1), num_decoder_blocks=(1, 1, 0), scaling_factor=1.25,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="sample", rescale_betas_zero_snr=True,
        timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    nulls = torch.randn(WORDS, WIDTH), torch.randn(PATCHES, WIDTH)
    mean, spread = torch.randn(4), 0.5 + torch.rand(4)
    return Painter(net, vae, scheduler, resampler(WIDTH), *nulls, mean, spread).eval()


def conditions(size: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random text states and picture tokens."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, WORDS, WIDTH, generator=draw), torch.randn(size, 4, WIDTH, generator=draw)


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def stable_diffusion_folder(folder: Path) -> Path:
    """unet/, vae/, scheduler/, text_encoder/, tokenizer/ as Stable Diffusion 1.5 has them."""
    torch.manual_seed(2)
    unet(4, 0, 8).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder / "vae")  # fmt: skip
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=6, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=WORDS, bos_token_id=4, eos_token_id=5, pad_token_id=5,
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    _tokenizer(folder / "tokenizer")
    return folder


def _tokenizer(folder: Path) -> None:
    folder.mkdir()
    words = ["a", "b", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    special = {"bos_token": words[4], "eos_token": words[5], "unk_token": words[5], "pad_token": words[5]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))


def adapter_folder(folder: Path, net: UNet2DConditionModel) -> Path:
    """ip-adapter-plus_sd15.safetensors with image_encoder/ beside it; returns the file."""
    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=48, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    adapter.install(net, 4)
    for processor in adapter.processors(net):
        for parameter in processor.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    file = folder / "ip-adapter-plus_sd15.safetensors"
    save_file(adapter.adapter_state(net, resampler(48, depth=4)), file)
    return file
