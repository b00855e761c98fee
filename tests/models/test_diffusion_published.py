"""Stable Diffusion with IP-Adapter Plus: counted sizes, published layouts, and parity with diffusers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextModel

from tessera.errors import CheckpointError
from tessera.models.diffusion import Painter, adapter, component_sizes, load_published
from tests.models.diffusion_tiny import WIDTH, WORDS, adapter_folder, resampler, seeds, stable_diffusion_folder, unet


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("published")
    file = adapter_folder(folder / "ip-adapter", unet(4, 0, 8))
    return stable_diffusion_folder(folder / "stable-diffusion"), file


@pytest.mark.light("vl-gpt", "size")
def test_published_sizes_are_the_counted_ones() -> None:
    assert component_sizes() == {
        "unet": 859_520_964,
        "vae": 83_653_863,
        "resampler": 29_918_208,
        "image_maps": 19_169_280,
    }


def _perceiver(weights: dict[str, Tensor], layer: int, x: Tensor, latents: Tensor) -> Tensor:
    """One attention of the release's Resampler, from its formulas."""

    def at(name: str) -> Tensor:
        return weights[f"layers.{layer}.0.{name}"]

    x = F.layer_norm(x, x.shape[-1:], at("norm1.weight"), at("norm1.bias"))
    known = F.layer_norm(latents, latents.shape[-1:], at("norm2.weight"), at("norm2.bias"))
    q = known @ at("to_q.weight").T
    k, v = (torch.cat([x, known], dim=1) @ at("to_kv.weight").T).chunk(2, dim=-1)
    heads = [part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in (q, k, v)]
    weight = torch.softmax(heads[0] @ heads[1].mT / math.sqrt(64), dim=-1)
    return (weight @ heads[2]).transpose(1, 2).flatten(2) @ at("to_out.weight").T


@pytest.mark.light("vl-gpt", "exact", "weights")
def test_resampler_from_a_release_file_computes_the_release_formulas() -> None:
    torch.manual_seed(0)
    module = resampler(48, depth=2)
    weights = {name: value.detach() for name, value in adapter._resampler_to_release(module).items()}
    x = torch.randn(3, 10, 48)
    latents, inner = weights["latents"].expand(3, -1, -1), x @ weights["proj_in.weight"].T + weights["proj_in.bias"]
    for layer in range(2):
        latents = _perceiver(weights, layer, inner, latents) + latents
        norm, widen, narrow = (f"layers.{layer}.1.{part}" for part in (0, 1, 3))
        hidden = F.layer_norm(latents, (WIDTH,), weights[f"{norm}.weight"], weights[f"{norm}.bias"])
        latents = F.gelu(hidden @ weights[f"{widen}.weight"].T) @ weights[f"{narrow}.weight"].T + latents
    out = latents @ weights["proj_out.weight"].T + weights["proj_out.bias"]
    expected = F.layer_norm(out, (WIDTH,), weights["norm_out.weight"], weights["norm_out.bias"])
    built = adapter.build_resampler(weights)
    torch.testing.assert_close(built(x), expected)
    assert torch.equal(built(x), module(x))


@pytest.mark.light("vl-gpt", "exact", "weights")
def test_published_folders_paint_what_diffusers_own_pipeline_paints(published: tuple[Path, Path]) -> None:
    folder, file = published
    painter = load_published(folder, file)
    pipeline = StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(folder / "vae"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        UNet2DConditionModel.from_pretrained(folder / "unet"),
        DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    groups: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in load_file(file).items():
        group, _, rest = name.partition(".")
        groups[group][rest] = value
    pipeline.unet._load_ip_adapter_weights([groups], low_cpu_mem_usage=False)
    pipeline.set_ip_adapter_scale(0.7)
    torch.manual_seed(4)
    text, states = torch.randn(1, WORDS, WIDTH), torch.randn(1, 17, 48)
    theirs = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=painter.null_text[None],
        ip_adapter_image_embeds=[torch.stack([painter.null_patches[None], states])],
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=seeds(9),
        output_type="latent",
    ).images
    with torch.no_grad():
        tokens = painter.image_condition(states)
    ours = painter.sample(text, tokens, steps=4, guidance=5.0, image_scale=0.7, generator=seeds(9))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        decoded = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(painter.decode(ours).detach(), decoded, rtol=1e-3, atol=1e-3)


def test_a_published_painter_saves_and_loads_as_a_painter(published: tuple[Path, Path], tmp_path: Path) -> None:
    painter = load_published(*published)
    painter.save_pretrained(tmp_path / "p")
    loaded = Painter.from_pretrained(tmp_path / "p")
    assert loaded.scheduler.config.prediction_type == "epsilon"
    ours, theirs = painter.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_pickled_broken_and_foreign_adapters_are_refused_in_a_sentence(
    published: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, file = published
    with pytest.raises(CheckpointError, match="convert to safetensors"):
        load_published(folder, file.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="no IP-Adapter file"):
        load_published(folder, tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_published(folder, broken, file.parent / "image_encoder")
    state = load_file(file)
    fewer = tmp_path / "fewer.safetensors"
    save_file({name: value for name, value in state.items() if "ip_adapter.1." not in name}, fewer)
    with pytest.raises(CheckpointError, match="belongs to another U-Net: 1.to_k_ip.weight is absent in the file"):
        load_published(folder, fewer, file.parent / "image_encoder")
    pooled = tmp_path / "pooled.safetensors"
    save_file({"image_proj.proj.weight": torch.zeros(4, 4)}, pooled)
    with pytest.raises(CheckpointError, match="not an IP-Adapter Plus"):
        load_published(folder, pooled, file.parent / "image_encoder")
    with pytest.raises(CheckpointError, match="no usable image encoder"):
        load_published(folder, file, tmp_path / "nowhere")
