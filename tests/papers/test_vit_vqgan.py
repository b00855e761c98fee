"""ViT-VQGAN as a paper: published sizes, a user's pictures through the command line, the study at a tiny budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tessera
from tessera.cli import main
from tessera.errors import CheckpointError, UserError
from tessera.evaluate.codebook import bits_per_code, perplexity, usage
from tessera.papers import vit_vqgan_rates
from tessera.papers import vit_vqgan_study as study
from tessera.papers.figures import beside
from tessera.papers.pictures import Shapes
from tessera.papers.registry import TrainOptions
from tessera.papers.vit_vqgan import RECIPES, ViTVQGAN
from tessera.study.classifying import Lesson
from tessera.study.engine import run
from tests.models.vq_tiny import codes, image_model
from tests.papers.path_to_loss import files_on_the_way_to

RESULTS = Path(__file__).parents[2] / "results"
SMALL = [
    "tokenizer.image_size=16", "tokenizer.patch_size=4", "tokenizer.encoder_width=16", "tokenizer.encoder_depth=1",
    "tokenizer.encoder_heads=2", "tokenizer.codes=20", "tokenizer.code_width=4", "model.width=16", "model.depth=2",
    "model.heads=2", "critic=4", "codebook.batch=4", "codes.batch=4", "probe.batch=4",
]  # fmt: skip
BUDGET = study.Budget(
    steps=1, batch=2, codes=Lesson(steps=1, batch=2), drawings=4, probed=12, train_pictures=24, heldout_pictures=6,
)  # fmt: skip


@pytest.mark.light("vit-vqgan", "size")
@pytest.mark.parametrize(
    ("variant", "part", "number"),
    [
        ("ss-rebuilt", "encoder", 25_306_624),
        ("ss-rebuilt", "decoder", 25_306_115),
        ("ss-rebuilt", "quantiser", 295_456),
        ("bb-rebuilt", "encoder", 85_176_576),
        ("ll-rebuilt", "encoder", 587_861_760),
        ("ll-rebuilt-80", "encoder", 629_804_800),
    ],
)
def test_the_re_implementation_s_sizes_count_exactly(variant: str, part: str, number: int) -> None:
    assert ViTVQGAN().size(variant)["parameters"][part] == number


@pytest.mark.light("vit-vqgan", "size")
def test_a_picture_is_1024_codes_of_13_bits_and_base_counts_as_the_text_says() -> None:
    small, base = ViTVQGAN().size("ss"), ViTVQGAN().size("bb")
    assert (small["codes"], small["bits"]) == (1024, 13_312)
    assert small["times fewer bits"] == pytest.approx(118.15, abs=0.01)
    assert 90.5e6 < base["parameters"]["encoder"] < 91.5e6
    assert [ViTVQGAN().size(name)["block of features"] for name in ("vim-b", "vim-l")] == [10, 15]


@pytest.mark.light("vit-vqgan", "size")
def test_every_checkable_figure_follows_and_the_four_that_do_not_say_why() -> None:
    rows = beside(ViTVQGAN().figures(), ViTVQGAN().size)
    odd = [row.figure.name for row in rows if not row.follows]
    assert odd == ["Small, encoder", "Large, encoder", "VIM-Base", "VIM-Large"]
    assert [row.figure.name for row in rows if row.figure.note] == odd
    with pytest.raises(UserError, match="no variant 'sss'; did you mean 'ss'"):
        ViTVQGAN().size("sss")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures each of two colours, by class; and eight of no class."""
    folder = tmp_path_factory.mktemp("pictures")
    for place, name in ((0, "classes/red"), (2, "classes/blue"), (1, "others")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 60, (20, 20, 3), np.uint8)
            pixels[..., place] += 150
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run of a training through the command line, and the files on the way to its first loss."""
    out = tmp_path_factory.mktemp("vit-vqgan") / "run"
    with files_on_the_way_to("tessera.models.vq.training:logit_laplace") as files:
        line = ["train", "vit-vqgan", "--data", str(data / "classes"), "--out", str(out), "--precision", "fp32"]
        assert main([*line, "--steps", "9", "--set", *SMALL, "losses.slope_every=2"]) == 0
    return out, files


def test_a_step_goes_through_six_files_from_the_command_to_the_loss(trained: tuple[Path, list[str]]) -> None:
    assert trained[1] == [
        "cli/training.py",
        "papers/vit_vqgan.py",
        "train/engine.py",
        "train/step.py",
        "models/vq/training.py",
        "objectives/logit_laplace.py",
    ]


@pytest.mark.light("vit-vqgan", "use")
def test_pictures_come_back_and_new_ones_are_drawn_of_a_class(
    trained: tuple[Path, list[str]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, picture = str(trained[0] / "model"), str(data / "classes/red/3.png")
    capsys.readouterr()
    sheets = tmp_path / "back.png", tmp_path / "new.png"
    back = ["reconstruct", picture, picture, "--model", model, "--out", str(tmp_path / "a"), "--json"]
    assert main([*back, "--sheet", str(sheets[0])]) == 0
    rows = json.loads(capsys.readouterr().out)
    sizes = [Image.open(row["reconstruction"]).size for row in rows]
    assert sizes == [(16, 16)] * 2 and rows[0]["image"] == picture
    sample = ["sample", "--model", model, "--count", "3", "--out", str(tmp_path / "b"), "--json", "--sheet"]
    sample.append(str(sheets[1]))
    assert main([*sample, "--of", "blue", "--guidance", "2", "--top-k", "5", "--top-p", "0.9", "--seed", "7"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["of"] for row in rows] == ["blue"] * 3
    once = [Path(row["image"]).read_bytes() for row in rows]
    assert main([*sample, "--of", "blue", "--guidance", "2", "--top-k", "5", "--top-p", "0.9", "--seed", "7"]) == 0
    assert [Path(row["image"]).read_bytes() for row in json.loads(capsys.readouterr().out)] == once
    assert [Image.open(one).size for one in sheets] == [(4 * 132 - 4, 128), (3 * 132 - 4, 128)]
    assert main(["draw", "red", "--model", model, "--out", str(tmp_path / "c"), "--json"]) == 0
    assert Image.open(json.loads(capsys.readouterr().out)[0]["image"]).size == (16, 16)


@pytest.mark.light("vit-vqgan", "use")
def test_its_features_name_classes_and_the_use_of_its_codebook_is_told(
    trained: tuple[Path, list[str]], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, picture = str(trained[0] / "model"), str(data / "classes/blue/3.png")
    capsys.readouterr()
    assert main(["classify", picture, "--model", model, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert {guess["class"] for guess in row["classes"]} == {"red", "blue"}
    assert main(["embed", picture, "--model", model]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["vector"]) == 16
    assert main(["evaluate", "--model", model, "--suite", "tokenizer", "--size", "5", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert {"scenes: share of the 20 codes used", "scenes: perplexity of the codes"} <= scores.keys()
    assert 0 < scores["scenes: share of the 20 codes used"]["value"] <= 1
    assert main(["evaluate", "--model", model, "--suite", "emoji"]) == 2
    assert "does not caption; it can reconstruct, sample" in capsys.readouterr().err


@pytest.mark.light("vit-vqgan", "use")
def test_pictures_without_classes_are_learned_and_codes_again_over_a_trained_tokenizer(
    trained: tuple[Path, list[str]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "vit-vqgan", "--data", str(data / "others"), "--precision", "fp32", "--steps", "2"]
    small = ["model.width=16", "model.depth=2", "model.heads=2", "codes.batch=4"]
    part = f"tokenizer={trained[0] / 'model/tokenizer'}"
    assert main([*line, "--out", str(tmp_path / "run"), "--parts", part, "--set", *small]) == 0
    capsys.readouterr()
    maker, before = tessera.load(tmp_path / "run/model"), tessera.load(trained[0] / "model")
    assert maker.classes == () and maker.abilities == ("reconstruct", "sample", "embed", "evaluate")
    for ours, theirs in zip(maker.tokenizer.parameters(), before.tokenizer.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="trained without classes"):
        maker.sample(1, of="red")
    with pytest.raises(UserError, match="no class is named 'rde'; did you mean 'red'"):
        before.sample(1, of="rde")
    for settings, sentence in (
        ("model.codes=21", "model.codes is 21, and the tokenizer has 20; leave model.codes out"),
        ("tokenizer.codes=21", "stays as it is; tokenizer.codes cannot be set"),
    ):
        assert main([*line, "--out", str(tmp_path / "other"), "--parts", part, "--set", *small, settings]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.light("vit-vqgan", "use")
def test_a_folder_whose_halves_do_not_belong_together_is_refused(
    trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    shutil.copytree(trained[0] / "model", tmp_path / "model")
    image_model().save_pretrained(tmp_path / "model/transformer")
    with pytest.raises(CheckpointError, match="for a codebook of 12 codes, and the tokenizer has 20"):
        tessera.load(tmp_path / "model")


def test_what_cannot_be_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    for settings, parts, sentence in (
        ({"tokenizer.image_size": "60"}, {}, "60 x 60 pixels cannot be cut into tiles of 8 x 8"),
        ({"tokenizer.image_size": "40"}, {}, "pixels a side, not 40"),
        ({"tokenizer.codez": "8"}, {}, "did you mean 'tokenizer.codes'"),
        ({"tokenizer.logit_laplace": "false"}, {}, "losses.laplace needs tokenizer.logit_laplace"),
        ({}, {"tokeniser": "x"}, "no role 'tokeniser' here; did you mean 'tokenizer'"),
    ):
        options = TrainOptions(tmp_path / "run", data=(str(data / "classes"),), settings=settings, parts=parts)
        with pytest.raises(UserError, match=sentence):
            ViTVQGAN().train(options)
    with pytest.raises(UserError, match="needs a network: --parts eyes=FOLDER"):
        ViTVQGAN().train(TrainOptions(tmp_path / "run", data=(str(data / "classes"),), size="published"))
    assert not (tmp_path / "run").exists()


def test_steps_are_shared_between_the_stages() -> None:
    scaled = RECIPES["mini"].scaled(430, trained=False)
    assert (scaled.codebook.steps, scaled.codes.steps, scaled.probe.steps) == (200, 200, 30)
    scaled = RECIPES["mini"].scaled(230, trained=True)
    assert (scaled.codes.steps, scaled.probe.steps) == (200, 30)


def test_a_codebook_s_use_is_a_share_of_all_codes_and_its_perplexity_of_equal_ones() -> None:
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]])
    assert usage(ids, 8).value == 0.5
    found = perplexity(ids, 8)
    assert (found.value, found.low, found.high) == pytest.approx((4, 4, 4))
    assert perplexity(torch.zeros(3, 4, dtype=torch.int64), 8).value == pytest.approx(1)
    flat = image_model()
    torch.nn.init.zeros_(flat.tokens.weight)
    assert bits_per_code(flat, codes()) == pytest.approx(np.log2(12))


def test_the_study_runs_all_arms_at_equal_budget(tmp_path: Path) -> None:
    result = run(study.headline(tmp_path / "work", BUDGET), 3, out=tmp_path / "a.json", work=tmp_path / "work")
    assert result["budget"]["equal"]
    kinds = ["improved", "plain codebook", "plain VQGAN"]
    assert list(result["arms"]) == [*kinds, *(f"{kind}, no restarts" for kind in kinds)]
    for arm in result["arms"].values():
        assert (arm["steps"], arm["samples"]) == ([2] * 3, [4] * 3)
        assert {study.USED, study.ERROR, study.DRAWN, study.BITS, study.RIGHT} <= arm["metrics"].keys()
    assert len(result["claims"]) == 9
    assert not list((tmp_path / "work/training").iterdir()), "nothing is left of the trainings"


def test_the_same_arms_learn_emoji(tmp_path: Path) -> None:
    world = Shapes(20, 6)
    world.name = "stand-in"
    found = study.on_emoji(tmp_path, BUDGET, world)
    assert (found.slug, [arm.name for arm in found.arms]) == ("vit-vqgan-emoji", list(study.ARMS))
    with pytest.raises(UserError, match="leave out both"):
        ViTVQGAN().studies["emoji"](data=tmp_path, model=None)


def test_each_kind_has_the_rate_that_was_the_best_on_training_pictures_kept_back(tmp_path: Path) -> None:
    found = vit_vqgan_rates.rates(tmp_path, BUDGET)
    assert found.config["train"] != found.config["heldout"]
    world = vit_vqgan_rates.KeptBack(24, 6)
    learned, judged = world.source("classes"), world.source("classes", "heldout")
    assert (len(learned), len(judged)) == (18, 6)
    whole = Shapes(24, 6).source("classes")
    assert [one.id for one in (learned[17], judged[0], judged[5])] == [whole[place].id for place in (17, 18, 23)]
    with pytest.raises(UserError, match="leave out --data"):
        ViTVQGAN().studies["rates"](data=tmp_path, model=None)
    arm = found.arms[-1]
    assert arm.config["lr"] == 1e-2 and arm.config["architecture"] == "conv"
    outcome = arm.run(0)
    assert (outcome.steps, outcome.samples, len(outcome.items[study.ERROR])) == (1, 2, 6)
    arms = json.loads((RESULTS / "vit-vqgan-rates.json").read_text())["arms"]
    errors = {place: arms[name]["metrics"][study.ERROR]["value"] for name, place in vit_vqgan_rates.ARMS.items()}
    for kind, chosen in study.RATES.items():
        assert min(errors, key=lambda place: errors[place] if place[0] == kind else np.inf) == (kind, chosen)


def test_tiles_are_mean_colours_and_scenes_of_one_shape_are_told() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:8, 8:16] = 255
    found = study.tiles([Image.fromarray(picture)]).reshape(8, 8, 3)
    assert found[0, 1].tolist() == [1, 1, 1] and found.sum() == 3
    assert not study.one_shape(picture)
    scenes = Shapes(4, 4).source("classes", "heldout")
    assert study.one_shape(np.asarray(scenes[0].images[0].pil()))
