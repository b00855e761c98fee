"""Tiny random weights in the folders and files that the published parts of VL-GPT come in."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import PNDMScheduler
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tessera.data.sequence import SYSTEM
from tessera.data.source import World
from tests.models.diffusion_tiny import adapter_folder, stable_diffusion_folder, unet

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def published_parts(folder: Path, world: World) -> dict[str, str]:
    """Checkpoints by role: LLaMA, CLIP, Stable Diffusion 1.5 and IP-Adapter Plus, as their releases lay them out.

    Args:
        world: its captions teach the word pieces of the language model's tokenizer.
    """
    llama(folder / "llama", world)
    clip(folder / "clip")
    diffusion = stable_diffusion_folder(folder / "stable-diffusion")
    PNDMScheduler(  # as the release has it
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
    ).save_pretrained(diffusion / "scheduler")  # fmt: skip
    adapter = adapter_folder(folder / "ip-adapter", unet(4, 0, 8))
    return {
        "language": str(folder / "llama"),
        "vision": str(folder / "clip"),
        "painter": str(diffusion),
        "adapter": str(adapter),
        "image_encoder": str(adapter.parent / "image_encoder"),
    }


def llama(folder: Path, world: World) -> None:
    """Weights in several files, and a tokenizer of LLaMA's kind: byte pairs, bytes as the last resort, no padding."""
    source = world.source("pairs")
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL + BYTES, show_progress=False)
    texts = [source[index].text for index in range(200)] + [SYSTEM, "USER: ASSISTANT:"]
    backend.train_from_iterator([piece for text in texts for piece in text.split(". ")], trainer)
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **marks)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="100KB")


def clip(folder: Path) -> None:
    """Both towers of a CLIP, of which the vision tower is used."""
    torch.manual_seed(6)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config={**sizes, "vocab_size": 50}, vision_config=vision)).save_pretrained(folder)
