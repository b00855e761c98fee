"""Painter: a latent diffusion model that paints from two conditions, words and picture tokens (VL-GPT section 2, 7).

U-Net, autoencoder and scheduler are diffusers' own; the decoupled cross-attention is IP-Adapter's. At mini size the
U-Net sees, beside the latents, fixed sine channels that say where each position lies.

Shape legend: B pictures, H = W pixels; latents [B, Z, h, w]; T words and Q picture tokens of D channels each;
N patch states of V channels from the image encoder.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tessera.errors import CheckpointError, UserError, reason
from tessera.files import atomic_folder, write_json
from tessera.layers.attention import products_where_faster
from tessera.models.diffusion import adapter
from tessera.models.diffusion.positions import patch_code, sine_grid

ADAPTER_FILE = "image_projection/diffusion_pytorch_model.safetensors"
CONSTANTS = ("null_text", "null_patches", "latent_mean", "latent_spread")
CONSTANTS_FILE = "constants.safetensors"


class Painter(nn.Module):
    """U-Net, autoencoder, scheduler and Resampler as one.

    Args:
        unet: takes Z latent channels, or Z p^2 of patches of p x p latents; and 4 n position channels where its
            `in_channels` is larger than its `out_channels`.
        image_projection: the Resampler of the image condition; `adapter.install` must have been called on `unet`.
        null_text: [T, D], text states of the empty prompt: what guidance leads away from.
        null_patches: [N, V], patch states of the all-zero picture, IP-Adapter's null image.
        latent_mean, latent_spread: [Z], taken from the scaled latents and divided out, channel by channel; by
            default 0 and 1, as Stable Diffusion has it.
    """

    positions: Tensor  # [P, h, w]
    patch_code: Tensor  # [N, V], or empty
    null_text: Tensor
    null_patches: Tensor
    latent_mean: Tensor
    latent_spread: Tensor

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny | AutoencoderKL,
        scheduler: DDIMScheduler,
        image_projection: IPAdapterPlusImageProjection,
        null_text: Tensor,
        null_patches: Tensor,
        latent_mean: Tensor | None = None,
        latent_spread: Tensor | None = None,
    ):
        super().__init__()
        self.unet, self.vae, self.scheduler, self.image_projection = unet, vae, scheduler, image_projection
        # A U-Net of p^2 times the latents' channels reads them in patches of p x p, as SD3 and DiT do.
        self.patch = math.isqrt(unet.config.out_channels // vae.config.latent_channels)
        side = unet.config.sample_size
        extra = unet.config.in_channels - unet.config.out_channels
        self.register_buffer("positions", sine_grid(extra, side, side), persistent=False)
        code = patch_code(*null_patches.shape) if extra else torch.zeros(0)
        self.register_buffer("patch_code", code, persistent=False)
        self.register_buffer("null_text", null_text)
        self.register_buffer("null_patches", null_patches)
        channels = vae.config.latent_channels
        self.register_buffer("latent_mean", torch.zeros(channels) if latent_mean is None else latent_mean)
        self.register_buffer("latent_spread", torch.ones(channels) if latent_spread is None else latent_spread)

    # ---- conditions and latents

    def image_condition(self, patch_states: Tensor) -> Tensor:
        """The image condition e_v [B, Q, D] of patch states [B, N, V] (VL-GPT section 2, reading i).

        A painter with position channels also marks the patches with their places: the last states of a small CLIP
        hardly know any more where they are.
        """
        if len(self.patch_code):
            states = nn.functional.layer_norm(patch_states, patch_states.shape[-1:])
            patch_states = states + self.patch_code.to(states.dtype)
        return self.image_projection(patch_states)

    def null_conditions(self, size: int) -> tuple[Tensor, Tensor]:
        """Text [size, T, D] and picture tokens [size, Q, D] that say nothing."""
        image = self.image_condition(self.null_patches[None])
        return self.null_text.expand(size, -1, -1), image.expand(size, -1, -1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents [B, Z, h, w], of about unit spread, of pictures [B, 3, H, W] in [-1, 1]."""
        encoded = self.vae.encode(pictures)
        latents = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()
        scaled = latents * self.vae.config.scaling_factor
        return (scaled - self.latent_mean[:, None, None]) / self.latent_spread[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in about [-1, 1]."""
        scaled = latents * self.latent_spread[:, None, None] + self.latent_mean[:, None, None]
        return self.vae.decode(scaled / self.vae.config.scaling_factor).sample

    # ---- training

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor, image: Tensor) -> Tensor:
        """What the U-Net says of noisy latents [B, Z, h, w] at timesteps [B]: the clean latents, or the noise.

        Which of the two is for the scheduler to say.

        Args:
            text: [B, T, D].
            image: [B, Q, D].
        """
        patches = functional.pixel_unshuffle(noisy, self.patch)
        if self.positions.shape[0]:
            patches = torch.cat([patches, self.positions.to(noisy.dtype).expand(len(noisy), -1, -1, -1)], dim=1)
        with products_where_faster(max(patches[0, 0].numel(), text.shape[1]), patches.device):
            predicted = self.unet(patches, timesteps, (text, [image]), return_dict=False)[0]
        return functional.pixel_shuffle(predicted, self.patch)

    def denoising_loss(
        self,
        latents: Tensor,
        text: Tensor,
        image: Tensor,
        generator: torch.Generator,
        levels: Tensor,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """Squared error of the prediction, as (sum, number of values).

        Args:
            levels: log(noise / signal) of each picture, [B]; infinity is noise alone.
            generator: of the noise, which is drawn on its device.
            weights: how much each place counts, [B, h, w], of mean 1; by default all alike.
        """  # fmt: skip
        steps = self.timesteps_at(levels).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents)
        noisy = self.scheduler.add_noise(latents, noise, steps)
        target = latents if self.scheduler.config.prediction_type == "sample" else noise
        error = self.predict(noisy, steps, text, image).float() - target.float()
        squares = error.square() if weights is None else error.square() * weights[:, None]
        return squares.sum(), error.numel()

    def timesteps_at(self, levels: Tensor) -> Tensor:
        """The timesteps, int [B], whose log(noise / signal) is nearest above `levels`, float [B]."""
        signal = self.scheduler.alphas_cumprod.double().clamp(1e-12, 1 - 1e-12)
        known = 0.5 * ((1 - signal) / signal).log()
        return torch.searchsorted(known, levels.double().cpu()).clamp(max=len(known) - 1)

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        text: Tensor,
        image: Tensor,
        *,
        steps: int = 20,
        guidance: float = 2.0,
        image_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator],
    ) -> Tensor:
        """Latents [B, Z, h, w] painted from text [B, T, D] and picture tokens [B, Q, D]; see `paint`."""
        size, side = len(text), self.unet.config.sample_size * self.patch
        null_text, null_image = self.null_conditions(size)
        text, image = torch.cat([null_text.to(text), text]), torch.cat([null_image.to(image), image])
        shape = (size, self.vae.config.latent_channels, side, side)
        latents = randn_tensor(shape, generator=generator, device=text.device, dtype=text.dtype)
        self.scheduler.set_timesteps(steps, device=text.device)
        latents = latents * self.scheduler.init_noise_sigma
        adapter.set_image_scale(self.unet, image_scale)
        try:
            for step in self.scheduler.timesteps:
                both = torch.cat([latents, latents])
                without, given = self.predict(both, step.expand(2 * size), text, image).chunk(2)
                guided = without + guidance * (given - without)
                latents = self.scheduler.step(guided, step, latents).prev_sample
        finally:
            adapter.set_image_scale(self.unet, 1.0)
        return latents

    @torch.no_grad()
    def paint(
        self,
        text_condition: Tensor,
        image_condition: Tensor,
        *,
        steps: int = 20,
        guidance: float = 2.0,
        image_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator],
    ) -> np.ndarray:
        """Pictures, uint8 [B, H, W, 3].

        Args:
            text_condition: e_t or its estimate z_t, [B, T, D].
            image_condition: e_v or its estimate z_v, [B, Q, D].
            guidance: how far to go from what no condition gives towards what these give; 1 is no guidance.
            image_scale: weight of the picture tokens beside the words; at 0 they are not looked at.
            generator: one for the whole batch, or one a picture, which makes a picture independent of its batch.

        Raises:
            UserError: a condition is not of this painter's width, or steps are fewer than one.
        """
        width = self.unet.config.cross_attention_dim
        for name, condition in (("text", text_condition), ("image", image_condition)):
            if condition.shape[-1] != width:
                raise UserError(f"the {name} condition is {condition.shape[-1]} wide; this painter takes {width}")
        if steps < 1:
            raise UserError(f"painting takes at least 1 step, not {steps}")
        latents = self.sample(
            text_condition, image_condition,
            steps=steps, guidance=guidance, image_scale=image_scale, generator=generator,
        )  # fmt: skip
        pictures = self.decode(latents).float().clamp(-1, 1).add(1).mul(127.5).round().byte()
        return pictures.permute(0, 2, 3, 1).cpu().contiguous().numpy()

    # ---- files

    def save_pretrained(self, path: str | Path) -> None:
        """Write unet/, vae/, scheduler/ as diffusers does, and the rest in the layout of an IP-Adapter Plus file."""
        with atomic_folder(path) as folder:
            added = tuple(name for name, _ in self.unet.named_parameters() if ".processor." in name)
            plain = {name: value.contiguous() for name, value in self.unet.state_dict().items() if name not in added}
            self.unet.save_config(folder / "unet")
            _clean(folder / "unet" / "config.json")
            save_file(plain, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
            save_autoencoder(self.vae, folder / "vae")
            self.scheduler.save_pretrained(folder / "scheduler")
            (folder / ADAPTER_FILE).parent.mkdir()
            save_file(adapter.adapter_state(self.unet, self.image_projection), folder / ADAPTER_FILE)
            save_file({name: getattr(self, name).contiguous() for name in CONSTANTS}, folder / CONSTANTS_FILE)

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32, vae: Path | None = None) -> Painter:
        """The painter that `save_pretrained` wrote.

        Args:
            vae: as of `load_parts`.

        Raises:
            CheckpointError: a part is missing, damaged, pickled, or of another model.
        """
        path = Path(path)
        unet, autoencoder, scheduler = load_parts(path, dtype, vae)
        projection = adapter.attach(unet, adapter.read_adapter(path / ADAPTER_FILE))
        try:
            stored = load_file(path / CONSTANTS_FILE)
            constants = {name: stored[name].to(dtype) for name in CONSTANTS}
        except (SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(f"{path / CONSTANTS_FILE} is missing or damaged: {error}") from error
        latent = (1, autoencoder.config.latent_channels)
        fits = {
            "null_text": (2, unet.config.cross_attention_dim), "null_patches": (2, projection.proj_in.in_features),
            "latent_mean": latent, "latent_spread": latent,
        }  # fmt: skip
        for name, value in constants.items():
            if (value.ndim, value.shape[-1]) != fits[name]:
                raise CheckpointError(
                    f"{path / CONSTANTS_FILE} does not fit its painter: {name} has shape {list(value.shape)}"
                )
        return cls(unet, autoencoder, scheduler, projection, **constants).eval()


def save_autoencoder(vae: AutoencoderTiny | AutoencoderKL, folder: Path) -> None:
    """Write an autoencoder as diffusers does, with a `_clean` configuration."""
    vae.save_pretrained(folder)
    _clean(folder / "config.json")


def _clean(config: Path) -> None:
    """Take out of a configuration where the part once lay, and an entry that diffusers writes but refuses to read."""
    held = json.loads(config.read_text(encoding="utf-8"))
    held.pop("_name_or_path", None)
    if held["_class_name"] == "AutoencoderTiny":
        held.pop("block_out_channels", None)
    write_json(config, held)


def load_parts(
    path: Path, dtype: torch.dtype = torch.float32, vae: Path | None = None
) -> tuple[UNet2DConditionModel, AutoencoderTiny | AutoencoderKL, DDIMScheduler]:
    """U-Net, autoencoder and scheduler of a folder with unet/, vae/ and scheduler/, safetensors only.

    Args:
        vae: the autoencoder's folder, where it lies elsewhere.

    Raises:
        CheckpointError: one is missing, damaged or pickled.
    """
    held = path / "vae" if vae is None else vae
    for part, folder in (("unet", path / "unet"), ("vae", held), ("scheduler", path / "scheduler")):
        if not folder.is_dir():
            raise CheckpointError(f"{path} has no folder {part!r}: it is not a diffusion model in diffusers' layout")
    try:
        kind = AutoencoderKL.load_config(held)["_class_name"]
        autoencoder = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}[kind]
        options = {"use_safetensors": True, "torch_dtype": dtype, "local_files_only": True}
        unet = _whole(UNet2DConditionModel, path / "unet", options)
        decoder = _whole(autoencoder, held, options)
        # Latents are no pixels and are never clipped; the PNDM configuration of a release need not say so.
        scheduler = DDIMScheduler.from_pretrained(path / "scheduler", clip_sample=False, local_files_only=True)
    except KeyError as error:
        raise CheckpointError(f"{held} is an autoencoder of an unknown kind: {error}") from error
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be loaded as a diffusion model in safetensors: {reason(error)}"
        ) from error
    return unet, decoder, scheduler


def _whole(kind: type[Any], folder: Path, options: dict[str, Any]) -> Any:
    """A model of diffusers with every weight from its folder: it would make up what is missing."""
    model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{folder} does not hold a {kind.__name__}: {len(missing)} of its weights are missing, such as {missing[0]}"
        )
    return model
