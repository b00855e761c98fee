"""The study of ViT-VQGAN: the improved tokenizer against the plain one, at equal steps over the same pictures.

    improved         ViT; codes of 8 dimensions and length 1
    plain codebook   the same ViT; vectors are looked up as they are, at their whole width
    plain VQGAN      VQGAN's convolutions, with that look-up

In so short a training vectors agree on a few codes within their first steps, and the codebook's loss moves those alone.
Codes that nobody chooses are therefore put where vectors lie, in each of the three arms. The paper has no such
restarts, and says that its look-up needs none: of that are three arms more, which have none either.

Each arm then learns its codes with one and the same transformer, which draws new pictures. Scenes of one shape, which
every machine can draw, are the study of the light; `--study emoji` is of emoji. Rates are from `--study rates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PIL
from torch import Tensor

from tessera.data.images import Pixels
from tessera.data.labelled import ClassesWorld, open_labelled
from tessera.data.source import Source
from tessera.errors import UserError
from tessera.evaluate.codebook import bits_per_code, code_features, perplexity, restored, usage
from tessera.evaluate.frechet import frechet_distance
from tessera.evaluate.probes import linear_probe
from tessera.evaluate.scene_reader import UNKNOWN, read_scene
from tessera.files import short_hash
from tessera.image_maker import ImageMaker
from tessera.models.image_ar import ImageARConfig, ImageARInTraining, ImageARModel
from tessera.models.vq import VQConfig, VQTokenizer
from tessera.models.vq.training import Losses, TokenizerInTraining
from tessera.papers.pictures import Shapes
from tessera.study.classifying import Lesson, PictureBench
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.training import trained
from tessera.train.engine import Trainer
from tessera.train.image_codes import codes_stage, square_loader, tokenizer_stage
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.suites import clip_features

SLUG = "vit-vqgan"
SIZE, CODES = 64, 512  # pixels a side; 8 x 8 codes a picture
PIXELS = Pixels(SIZE, (0.0,) * 3, (1.0,) * 3)
# The width of both look-ups that are not factorised is the same, so that they differ in what makes the vectors alone.
WIDTH = 96
VIT: dict[str, Any] = {"patch_size": 8, "encoder_width": WIDTH, "encoder_depth": 3, "encoder_heads": 4}
CONV: dict[str, Any] = {
    "architecture": "conv", "conv_widths": [8, 16, 32, 64], "conv_blocks": 1, "encoder_width": WIDTH
}  # fmt: skip
PLAIN: dict[str, Any] = {"code_width": 0, "normalise": False, "code_init": "uniform"}
MODEL: dict[str, Any] = {"width": 96, "depth": 6, "heads": 4, "dropout": 0.1}
LOSSES = Losses(perceptual=0.0, adversary=0.0)
IMPROVED, CODEBOOK, VQGAN = "improved", "plain codebook", "plain VQGAN"
RESTART = 10  # batches that a code may go unchosen
ALONE = ", no restarts"
_KINDS: dict[str, dict[str, Any]] = {
    IMPROVED: {**VIT, "code_width": 8}, CODEBOOK: {**VIT, **PLAIN}, VQGAN: {**CONV, **PLAIN}
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    **{name: {**fields, "restart": RESTART} for name, fields in _KINDS.items()},
    **{name + ALONE: fields for name, fields in _KINDS.items()},
}
# What results/vit-vqgan-rates.json chose.
RATES = {IMPROVED: 3e-4, CODEBOOK: 1e-3, VQGAN: 3e-3}

USED, ERROR, DRAWN, BITS = "codes used", "squared error", "Fréchet distance of drawings", "bits a code"
FORETOLD = "bits a code less those of the codes' frequencies"
OVER_LAST, OVER_PIXELS = "probe, middle less last block", "probe, middle block less pixels"
RIGHT = "drawings of one known shape"
CLAIMS = (
    Claim(
        name="more of the codebook is used", metric=USED, arm=IMPROVED + ALONE, against=VQGAN + ALONE, expect="higher",
        published="96 % of 8192 codes; 63 % with VQGAN's convolutions and the improved look-up",
    ),
    Claim(
        name="pictures come back better", metric=ERROR, arm=IMPROVED, against=VQGAN, expect="lower",
        published="reconstruction FID 1.28 against 4.98 (ImageNet)",
    ),
    Claim(
        name="better pictures are drawn", metric=DRAWN, arm=IMPROVED, against=VQGAN, expect="lower",
        published="FID 4.17 against 17.04 (ImageNet, class-conditional); 7.0 against 10.2 (CelebA-HQ)",
    ),
    Claim(
        name="few dimensions and length 1 use three times the codes", metric=USED, arm=IMPROVED + ALONE,
        against=CODEBOOK + ALONE, expect="higher", margin=2.0, relative=True,
        published="96 % used; 2 % without length 1, 4 % looked up in 256 dimensions",
    ),
    Claim(
        name="and bring pictures back better", metric=ERROR, arm=IMPROVED, against=CODEBOOK, expect="lower",
        published="FID 1.55; 5.44 without length 1, 3.68 looked up in 256 dimensions",
    ),
    Claim(
        name="codes can be foretold", metric=FORETOLD, arm=IMPROVED, against=0.0, expect="lower", margin=1.0,
        published="no figure; a guess by the frequencies of held-out codes is at 0",
    ),
    Claim(
        name="the middle block knows classes better than the last", metric=OVER_LAST, arm=IMPROVED, against=0.0,
        expect="higher", published="blocks 10 of 24 and 15 of 36 are probed",
    ),
    Claim(
        name="and better than pixels", metric=OVER_PIXELS, arm=IMPROVED, against=0.0, expect="higher",
        published="no figure; 73.2 % against 60.3 % of iGPT-L (ImageNet)",
    ),
    Claim(
        name="restarts keep the codebook in use", metric=USED, arm=IMPROVED, against=IMPROVED + ALONE, expect="higher",
        published="no figure; random restarts are Jukebox's (2020)",
    ),
)  # fmt: skip
NOTES = (
    "All arms have the same losses, squared error and logit-Laplace, without critic and perceptual loss: the study is"
    " of encoder, decoder and codebook.",
    f"A code that no vector of {RESTART} batches chose is put where a vector of the batch lies. The arms{ALONE} differ"
    " from those of the same name in this alone. Pictures enter every encoder within [-1, 1].",
    f"{USED}: share of {CODES} codes that held-out pictures use at all. {ERROR}: of held-out pictures, on the scale"
    " [0, 1].",
    f"{DRAWN}: on image features of mini/clip, between as many held-out pictures and drawings, without class, top-k or"
    " top-p.",
    "Probes are linear; pixels are means of 8 x 8 tiles, one for each code. Held-out scenes show combinations that"
    " training never had.",
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets: some twenty minutes for all arms of three seeds on two cores.

    Args:
        steps, batch: of the tokenizer, whose rate is that of its kind, see `RATES`.
        codes: how the codes are learned.
        drawings: that an arm is judged by, and held-out pictures that they are held against.
        probed: training pictures that probes learn from.
        train_pictures, heldout_pictures: of drawn shapes; emoji are taken whole.
    """

    steps: int = 500
    batch: int = 16
    codes: Lesson = Lesson(steps=400, batch=32, lr=1e-3)
    drawings: int = 400
    probed: int = 2000
    train_pictures: int = 6000
    heldout_pictures: int = 600


BUDGET = Budget()


@dataclass
class Bench(PictureBench):
    """Arms over one set of pictures."""

    size = SIZE

    @property
    def shared(self) -> dict[str, Any]:
        """What this study adds to `config`."""
        return {"codes": CODES, "centred": True, "model": MODEL, "losses": asdict(LOSSES)}

    def tokenizer_config(self, arm: str) -> VQConfig:
        """What sets an arm apart."""
        return VQConfig(image_size=SIZE, codes=CODES, centred=True, **ARMS[arm])

    def trainer(self, arm: str, seed: int) -> Trainer:
        """Of an arm with a seed; one that was stopped goes on."""
        folder = self.work / "training" / f"{short_hash([arm, self.settings(arm), self.config])}-seed-{seed}"
        settings = {"tokenizer": self.settings(arm), "budget": asdict(self.budget)}
        return Trainer(folder, config=settings, seed=seed, resume=True)

    def outcome(self, arm: str, seed: int) -> Outcome:
        """Codebook, then codes, then judged."""
        config, budget, lesson = self.tokenizer_config(arm), self.budget, self.budget.codes

        def stages() -> Iterator[Stage]:
            codebook = codebook_stage(config, self.train, budget, rate(arm), seed)
            yield codebook
            grid = config.grid
            model = ImageARModel(ImageARConfig(codes=CODES, rows=grid[0], columns=grid[1], **MODEL))
            loader = square_loader(self.train, PIXELS, lesson.batch, seed=seed)
            optimiser = Optimiser(kind=lesson.kind, lr=lesson.lr)
            both = ImageARInTraining(model, codebook.model.tokenizer)
            yield codes_stage(both, loader, lesson.steps, optimiser=optimiser)

        with trained(self.trainer(arm, seed), stages(), budget.steps + lesson.steps) as ran:
            maker = ImageMaker(ran.model.tokenizer.eval(), ran.model.model.eval())
            metrics, items = self.judge(maker, seed)
            return Outcome(metrics=metrics, items=items, steps=ran.steps, samples=ran.samples)

    def judge(self, maker: ImageMaker, seed: int) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Scores by name, and those of single held-out pictures."""
        heldout = pictures(self.heldout, len(self.heldout))
        seen = restored(maker.tokenizer, heldout, maker.pixels)
        drawn = [np.asarray(one) for one in maker.sample(self.budget.drawings, seed=seed)]
        true = [np.asarray(one) for one in heldout[: self.budget.drawings]]
        bits, equal = bits_per_code(maker.model, seen.ids), perplexity(seen.ids, CODES).value
        items = {
            ERROR: seen.errors.tolist(), BITS: bits.tolist(), FORETOLD: (bits - math.log2(equal)).tolist()
        }  # fmt: skip
        metrics = {
            USED: usage(seen.ids, CODES).value,
            "perplexity of the codes": equal,
            DRAWN: frechet_distance(clip_features(true), clip_features(drawn)),
            **self.probes(maker, heldout, seen.ids),
        }
        if isinstance(self.world, Shapes):
            metrics[RIGHT] = float(np.mean([one_shape(picture) for picture in drawn]))
        return metrics, items

    def probes(self, maker: ImageMaker, heldout: list[PIL.Image], ids: Tensor) -> dict[str, float]:
        """Accuracy of linear probes on the middle block, on the last and on pixels, and how much the first is ahead."""
        learned = pictures(self.train, self.budget.probed)
        codes = maker.encode(learned)
        labels = [self.train[place].text for place in range(len(learned))]
        truth = [self.heldout[place].text for place in range(len(heldout))]

        def accuracy(ours: np.ndarray, theirs: np.ndarray) -> float:
            return linear_probe(ours, labels, theirs, truth).value

        def of_block(block: int) -> float:
            return accuracy(code_features(maker.model, codes, block), code_features(maker.model, ids, block))

        config = maker.model.config
        middle, last = of_block(config.middle), of_block(config.depth)
        pixels = accuracy(tiles(learned), tiles(heldout))
        return {
            "probe, middle block": middle, "probe, last block": last, "probe, pixels": pixels,
            OVER_LAST: middle - last, OVER_PIXELS: middle - pixels,
        }  # fmt: skip

    def settings(self, arm: str) -> dict[str, Any]:
        """What sets an arm apart, as JSON, with its size."""
        with torch.device("meta"):
            model = VQTokenizer(self.tokenizer_config(arm))
        return {**ARMS[arm], "lr": rate(arm), "parameters": sum(one.numel() for one in model.parameters())}

    def study(self) -> Study:
        """All arms and claims."""
        arms = [Arm(name=name, run=partial(self.outcome, name), config=self.settings(name)) for name in ARMS]
        return Study(
            slug=self.slug, title=f"the improved tokenizer against the plain one ({self.world.name})", arms=arms,
            claims=CLAIMS, config=self.config, notes=NOTES,
            tuning="of five rates each kind of tokenizer has the one that was the best on training scenes that nothing"
            " learned from (`--study rates`); nothing else was tuned",
        )  # fmt: skip


def rate(arm: str) -> float:
    """The highest learning rate of an arm's tokenizer."""
    return RATES[arm.removesuffix(ALONE)]


def codebook_stage(config: VQConfig, source: Source, budget: Budget, lr: float, seed: int) -> Stage:
    """The stage that trains a new tokenizer on pictures, `TokenizerInTraining`."""
    loader = square_loader(source, PIXELS, budget.batch, seed=seed)
    # The paper's Adam, whose decay hardly moves so short a training.
    adam = Optimiser(lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    return tokenizer_stage(TokenizerInTraining(VQTokenizer(config), LOSSES), loader, budget.steps, optimiser=adam)


def pictures(source: Source, number: int) -> list[PIL.Image]:
    """The first pictures of a source, at most `number`."""
    return [source[place].images[0].pil() for place in range(min(number, len(source)))]


def tiles(images: list[PIL.Image]) -> np.ndarray:
    """Mean colours float32 [n, 8 * 8 * 3] of the tiles that one code stands for."""
    side = VIT["patch_size"]
    arrays = np.stack([np.asarray(one, np.float32) for one in images])
    cut = arrays.reshape(len(arrays), SIZE // side, side, SIZE // side, side, 3)
    return cut.mean(axis=(2, 4)).reshape(len(arrays), -1) / 255


def one_shape(picture: np.ndarray) -> bool:
    """Whether a picture uint8 [64, 64, 3] shows one object of a known shape, as the scenes do that were learned."""
    found = read_scene(picture)
    return len(found) == 1 and found[0].shape != UNKNOWN


def headline(work: Path = WORK / SLUG, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn shapes."""
    return Bench(SLUG, Shapes(budget.train_pictures, budget.heldout_pictures), budget, work).study()


def on_emoji(work: Path, budget: Budget = BUDGET, world: ClassesWorld | None = None) -> Study:
    """The same arms on emoji, whose groups are the classes of the probes."""
    return Bench(f"{SLUG}-emoji", world or open_labelled("emoji"), budget, work).study()


def _emoji(*, data: Path | None, model: Path | None) -> Study:
    if data is not None or model is not None:
        raise UserError("the study emoji reads this machine's emoji font and trains its own models; leave out both")
    return on_emoji(WORK / f"{SLUG}-emoji")


FURTHER: Mapping[str, Callable[..., Study]] = {"emoji": _emoji}
