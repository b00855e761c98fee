"""Races of what is generated: words against `transformers.generate`, pictures against transformers' and diffusers' own
loops.

Both sides have the same weights and give the same words and pictures, which is looked at before they run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tessera.assistant import Assistant
from tessera.data.sequence import CLOSE, OPEN, PLACE
from tessera.errors import TesseraError
from tessera.generate.interleaved import generate
from tessera.generate.products import FixedMatrix
from tessera.generate.reply import Prompt
from tessera.models.diffusion.painter import Painter
from tessera.models.vlgpt.configuration import CausalTokenizerConfig
from tessera.models.vlgpt.image_tokenizer import CausalTokenizerModel
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.papers.vl_gpt import MINI, tokenizer_config
from tessera.papers.vl_gpt_steps import SIZES, UNUSED
from tessera.study.bench import ROUNDS, Measure, Race
from tessera.zoo.foundation import load_mini
from tessera.zoo.parts import quiet

LEAST, AIM = 2.0, 4.0  # words at batch 1 on a processor
DRAWN = (1.0, 0.3)  # seconds of a picture, from its sentence to its pixels
PROMPTS, BATCHES = (64, 512), (1, 8, 32)
FEW, LONG = 5, 4096  # rounds of races over more than so many words of prompts, which take seconds each
SENTENCE = "a large red star above a small blue circle"
CACHES: dict[str, dict[str, Any]] = {"dynamic": {}, "static": {"cache_implementation": "static"}}
Rows = Callable[[Mapping[str, Any]], Iterable[Measure]]


def per_second(unit: str, count: int, *, floor: float | None = None, aim: float | None = None) -> Rows:
    """What a run of ours makes, by the second."""

    def rows(row: Mapping[str, Any]) -> Iterator[Measure]:
        rate = 1e3 * count / row["ours_ms"]
        yield Measure(name=row["race"], take=lambda: rate, unit=f"{unit} a second", floor=floor, aim=aim)

    return rows


def in_seconds(floor: float | None = None, aim: float | None = None) -> Rows:
    """How long a run of ours takes."""

    def rows(row: Mapping[str, Any]) -> Iterator[Measure]:
        yield Measure(name=row["race"], take=lambda: row["ours_ms"] / 1e3, unit="s", floor=floor, aim=aim)

    return rows


class Words:
    """One language model with random weights, the same each time, in VL-GPT and alone. No word ends its replies.

    Both sides compute in single precision.

    Args:
        bits: 16 where the weights are those of bfloat16, as mini/lm and published checkpoints have them; or 32.
    """

    def __init__(self, config: LlamaConfig, device: torch.device, bits: int = 16) -> None:
        torch.manual_seed(0)
        config.eos_token_id, config._attn_implementation = None, "sdpa"
        language: Any = LlamaForCausalLM(config).eval()
        for weight in language.parameters() if bits == 16 else ():
            weight.data.copy_(weight.data.bfloat16())
        words, fields = config.vocab_size, dict[str, Any](UNUSED, embed_width=config.hidden_size)
        unused = CausalTokenizerModel(CausalTokenizerConfig(**fields))
        ids = {"image_start_id": words, "image_end_id": words + 1, "image_placeholder_id": words + 2}
        model = VLGPTForConditionalGeneration.from_parts(language, unused, **ids).eval()
        torch.nn.Module.to(model, device)  # as model.to, whose own types a checker cannot follow
        self.model, self.language, self.device, self.bits = model, language, device, bits

    def race(self, rows: int, length: int, new: int, least: float = 0.0, aim: float = 0.0) -> Race:
        """`new` words after each of `rows` prompts of `length` words; with one new word, the time to it.

        Raises:
            TesseraError: the two do not say the same.
        """
        language = self.language
        prompts = torch.randint(4, language.config.vocab_size, (rows, length), device=self.device)

        def ours() -> list[list[int]]:
            replies = generate(self.model, [Prompt(one) for one in prompts], max_new_tokens=new, images="never")
            return [reply.ids for reply in replies]

        def theirs(cache: str) -> list[list[int]]:
            with torch.inference_mode():
                said: Any = language.generate(
                    prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, do_sample=False,
                    pad_token_id=0, **CACHES[cache],
                )  # fmt: skip
            return said[:, length:].tolist()

        seconds, said = zip(*(_second_run(partial(theirs, name)) for name in CACHES), strict=True)
        best = seconds.index(min(seconds))
        cache, mine = list(CACHES)[best], ours()
        if mine != said[best]:
            raise TesseraError(f"{rows} x {length}: ours and transformers do not say the same words")
        million = sum(weight.numel() for weight in language.parameters()) / 1e6
        inner = sum(weight.numel() for weight in language.model.layers.parameters())
        spoken = f"{new} words" if new > 1 else "the first word"
        return Race(
            name=f"{spoken} after {rows} x {length}, {million:.1f} M parameters of {self.bits} bits",
            peer=f"transformers.generate, {cache} cache", ours=ours, theirs=partial(theirs, cache),
            macs=float(rows * ((length + new - 1) * inner + new * language.lm_head.weight.numel())),
            dtype=torch.float32, least=least, aim=aim, warm=1, rounds=FEW if rows * length > LONG else ROUNDS,
            follows=per_second("words", rows * new) if new > 1 else in_seconds(),
        )  # fmt: skip


def _second_run(way: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """Seconds of the second run, and what it gave."""
    way()
    began = time.perf_counter()
    said = way()
    return time.perf_counter() - began, said


def products(rows: int, bits: int, device: torch.device) -> Race:
    """Products of some rows with the largest matrices of the model of 100 M parameters, out of memory: no cache holds
    them all."""
    config = SIZES["100m"].language()
    shape = (2 * config.intermediate_size, config.hidden_size)
    dtype = torch.bfloat16 if bits == 16 else torch.float32
    weights = [torch.randn(shape, device=device).to(dtype).float() for _ in range(config.num_hidden_layers)]
    held, x = [FixedMatrix(weight) for weight in weights], torch.randn(rows, config.hidden_size, device=device)
    expected = [F.linear(x, weight) for weight in weights]
    for matrix, theirs in zip(held, expected, strict=True):
        torch.testing.assert_close(matrix(x) * matrix.unit, theirs, atol=1e-3, rtol=1e-4)
    return Race(
        name=f"{len(held)} products of {rows} x {shape[1]} x {shape[0]}, weights of {bits} bits",
        peer="torch.nn.functional.linear", ours=lambda: [matrix(x) for matrix in held],
        theirs=lambda: [F.linear(x, weight) for weight in weights], macs=float(len(held) * rows * shape[0] * shape[1]),
        dtype=torch.float32, least=0.0, aim=0.0,
    )  # fmt: skip


def untrained(device: torch.device) -> Assistant:
    """VL-GPT at mini size, joined of the parts that ship and not trained: it draws nothing, at the speed of one that
    does."""
    torch.manual_seed(0)
    with quiet():
        parts = load_mini()
    tokenizer = CausalTokenizerModel(tokenizer_config(parts, MINI), parts.vision)
    vocabulary = parts.tokenizer.get_vocab()
    named = {"image_start_id": OPEN, "image_end_id": CLOSE, "image_placeholder_id": PLACE}
    ids = {name: vocabulary[token] for name, token in named.items()}
    model = VLGPTForConditionalGeneration.from_parts(
        parts.language, tokenizer, **ids, image_token_rows="shared", **MINI.model
    ).eval()
    for part in (model, parts.painter):
        torch.nn.Module.to(part, device)
    return Assistant(model, parts.tokenizer, parts.pixels, parts.painter)


@torch.inference_mode()
def plain_embeddings(model: VLGPTForConditionalGeneration, ids: Tensor) -> Tensor:
    """The picture [N, d] that follows a prompt int64 [L], step by step through transformers' model and its cache."""
    language, cache = model.language_model.model, DynamicCache()
    given, drawn = model.embed(ids[None]), []
    for place in range(model.config.num_image_positions):
        hidden = language(inputs_embeds=given, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        drawn.append(model.regression_head(hidden)[0])
        mask = model.visual_mask
        given = (model.read_embeds(drawn[-1][None], place) if mask is None else mask.weight[place][None])[None]
    return torch.stack(drawn)


@torch.inference_mode()
def plain_picture(painter: Painter, text: Tensor, image: Tensor, steps: int, guidance: float) -> np.ndarray:
    """A picture uint8 [H, W, 3] of conditions [1, T, D] and [1, Q, D] by diffusers' own U-Net, scheduler and
    autoencoder, without and with the conditions in one batch."""
    null_text, null_image = painter.null_conditions(1)
    text, image = torch.cat([null_text, text]), torch.cat([null_image, image])
    side, channels = painter.unet.config.sample_size * painter.patch, painter.vae.config.latent_channels
    noise = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    latents = noise.to(text) * painter.scheduler.init_noise_sigma
    painter.scheduler.set_timesteps(steps, device=text.device)
    for step in painter.scheduler.timesteps:
        without, given = painter.predict(torch.cat([latents, latents]), step.expand(2), text, image).chunk(2)
        latents = painter.scheduler.step(without + guidance * (given - without), step, latents).prev_sample
    pixels = painter.decode(latents).float().clamp(-1, 1).add(1).mul(127.5).round().byte()
    return pixels[0].permute(1, 2, 0).cpu().numpy()


@dataclass
class Pictures:
    """Each part of a drawing, and the whole of it, ours and plainly."""

    assistant: Assistant

    def __post_init__(self) -> None:
        self.model, self.painter = self.assistant.model, self.assistant.painter
        prompt = self.assistant.draw_prompt(SENTENCE)
        self.ids = torch.from_numpy(prompt.input_ids).long().to(self.model.device)

    def embeddings(self) -> Race:
        """The regression loop after its prompt."""
        number = self.model.config.num_image_positions

        def ours() -> Tensor:
            replies = generate(self.model, [Prompt(self.ids)], max_new_tokens=0, images="forced")
            return replies[0].pictures[0]

        torch.testing.assert_close(ours(), plain_embeddings(self.model, self.ids), atol=1e-4, rtol=1e-4)
        inner = sum(weight.numel() for weight in self.model.language_model.model.layers.parameters())
        return Race(
            name=f"{number} picture embeddings after {len(self.ids)} words",
            peer="transformers, dynamic cache", ours=ours, theirs=lambda: plain_embeddings(self.model, self.ids),
            macs=float(inner * (len(self.ids) + number - 1)), dtype=torch.float32, least=0.0, aim=0.0,
            follows=per_second("picture embeddings", number),
        )  # fmt: skip

    def pixels(self) -> Race:
        """One picture painted."""
        config, painter = self.model.config, self.painter
        conditions = self.model.decode_images(plain_embeddings(self.model, self.ids)[None])
        text, image = conditions.text, conditions.image
        steps, guidance = config.draw_steps, config.draw_guidance

        def ours() -> np.ndarray:
            generator = [torch.Generator().manual_seed(0)]
            return painter.paint(text, image, steps=steps, guidance=guidance, generator=generator)[0]

        def theirs() -> np.ndarray:
            return plain_picture(painter, text, image, steps, guidance)

        _check_alike(ours(), theirs())
        return Race(
            name=f"a picture of 64 pixels painted in {steps} steps", peer="diffusers, step by step", ours=ours,
            theirs=theirs, macs=0.0, dtype=torch.float32, least=0.0, aim=0.0, follows=in_seconds(),
        )  # fmt: skip

    def drawing(self) -> Race:
        """From the sentence to the pixels."""
        config = self.model.config

        def theirs() -> np.ndarray:
            conditions = self.model.decode_images(plain_embeddings(self.model, self.ids)[None])
            return plain_picture(
                self.painter, conditions.text, conditions.image, config.draw_steps, config.draw_guidance
            )

        def ours() -> np.ndarray:
            return np.asarray(self.assistant.draw(SENTENCE))

        _check_alike(ours(), theirs())
        return Race(
            name="a picture of 64 pixels drawn end to end", peer="transformers and diffusers", ours=ours, theirs=theirs,
            macs=0.0, dtype=torch.float32, least=0.0, aim=0.0, follows=in_seconds(*DRAWN),
        )  # fmt: skip


def _check_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raise TesseraError where two pictures differ by more than a rounding anywhere."""
    apart = int(np.abs(ours.astype(int) - theirs.astype(int)).max())
    if apart > 1:
        raise TesseraError(f"ours and the plain way paint pictures that are {apart} of 255 apart")


def races(device: torch.device) -> Iterator[Race]:
    """Products as generation has them, words at both sizes, first words, and pictures."""
    cpu = device.type == "cpu"
    with torch.inference_mode():
        for bits in (16, 32) if cpu else ():
            for rows in (*BATCHES, PROMPTS[1]):
                yield products(rows, bits, device)
    asked = (LEAST, AIM) if cpu else (0.0, 0.0)
    # At the larger size a batch takes minutes, and tells what the smaller one tells: products are all there is to it.
    for size, new, batches in (("mini", 64, BATCHES), ("100m", 32, BATCHES[:1] if cpu else BATCHES)):
        words = Words(SIZES[size].language(), device)
        for length in PROMPTS:
            for rows in batches:
                yield words.race(rows, length, new, *(asked if rows == 1 else (0.0, 0.0)))
            yield words.race(1, length, 1)
        del words
        yield Words(SIZES[size].language(), device, bits=32).race(1, PROMPTS[0], new, *asked)
    pictures = Pictures(untrained(device))
    yield pictures.embeddings()
    yield pictures.pixels()
    yield pictures.drawing()
