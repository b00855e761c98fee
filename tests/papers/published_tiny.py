"""Tiny random weights in the folders and files that the published parts of VL-GPT come in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import PNDMScheduler
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

from tessera.data.sequence import SYSTEM
from tessera.data.source import World
from tests.models.diffusion_tiny import adapter_folder, stable_diffusion_folder, unet

SPECIAL = ["<unk>", "<s>", "</s>"]
SMALL = {
    "tokenizer.width": 32, "tokenizer.depth": 2, "tokenizer.heads": 2, "tokenizer.mlp_width": 64,
    "tokenizer.num_embeddings": 8,
}  # fmt: skip
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
    parts = {
        "language": str(folder / "llama"),
        "vision": str(folder / "clip"),
        "painter": str(diffusion),
        "adapter": str(adapter),
        "image_encoder": str(adapter.parent / "image_encoder"),
    }
    (folder / "parts.json").write_text(json.dumps(parts))  # for a process that did not make them
    return parts


def llama(folder: Path, world: World) -> None:
    """Weights in several files, and a tokenizer of LLaMA's kind: byte pairs, bytes as the last resort, no padding."""
    source = world.source("pairs")
    texts = [source[index].text for index in range(200)] + [f"{SYSTEM} USER: ASSISTANT:"] * 10
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = _spaces()
    trainer = trainers.BpeTrainer(vocab_size=341, show_progress=False)
    learned.train_from_iterator([word for text in texts for word in text.split()], trainer)
    model = json.loads(learned.to_str())["model"]
    pieces = SPECIAL + BYTES + sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(pair) for pair in model["merges"]]
    whole = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    whole.normalizer = _spaces()
    whole.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    whole.add_special_tokens(SPECIAL)
    folder.mkdir(parents=True)
    whole.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "legacy": True}
    config = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(5)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512}
    language = LlamaForCausalLM(LlamaConfig(vocab_size=len(pieces), **sizes, **ids))
    language.save_pretrained(folder, max_shard_size="100KB")


def _spaces() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])


def clip(folder: Path) -> None:
    """Both towers of a CLIP, of which the vision tower is used."""
    torch.manual_seed(6)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)


def train_line(out: Path, parts: Mapping[str, str], settings: Mapping[str, object]) -> list[str]:
    """The arguments of `tessera` that train on these parts, with an image tokenizer as small as they are."""
    line = ["train", "vl-gpt", "--size", "published", "--precision", "fp32", "--data", "scenes", "--out", str(out)]
    line += [word for role, place in parts.items() for word in ("--parts", f"{role}={place}")]
    return [*line, "--set", *(f"{name}={value}" for name, value in (SMALL | dict(settings)).items())]
