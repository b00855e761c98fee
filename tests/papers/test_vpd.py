"""VPD as a paper: what it counts, trains, answers and compares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

import tessera
from tessera.cli import main
from tessera.errors import CheckpointError, DataError, TesseraError, UserError
from tessera.models.diffusion.perception.pyramid import UNetPyramid
from tessera.papers.figures import beside
from tessera.papers.registry import TrainOptions, get
from tessera.papers.vpd_study import ARMS, BUDGET, CLAIMS, FURTHER, LATENTS, METRIC, PLAIN, Bench, Budget, headline
from tessera.perceiver import Perceiver, load
from tests.models.diffusion_tiny import WIDTH, stable_diffusion_folder

TINY = Budget(steps=1, batch=2, lr=1e-3, unet=0.5, train_pictures=6, heldout_pictures=3)
COUNTED = {
    "segmentation": {
        "u-net": 859_520_964, "text adapter": 1_181_952, "neck": 3_339_264, "head": 4_170_902,
        "autoencoder": 34_163_592 + 72, "trained": 868_213_082,
    },
    "referring": {
        "u-net": 859_520_964, "text adapter": 1_181_952, "head": 39_176_962, "autoencoder": 34_163_592 + 72,
        "text tower": 123_060_480, "trained": 899_879_878,
    },
    "depth": {
        "u-net": 859_520_964 - 12_164, "text adapter": 1_181_952, "head": 11_537_409, "autoencoder": 34_163_592 + 72,
        "trained": 872_228_161,
    },
}  # fmt: skip


@pytest.mark.light("vpd", "size")
def test_size_tells_the_counted_figures_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "vpd", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {task: one["parameters"] for task, one in found.items()} == COUNTED
    assert {one["feature sides"] for one in found.values()} == {"64, 32, 16, 8"}
    assert found["segmentation"]["feature channels"] == "320, 790, 1430, 1280"
    paper = get("vpd")
    assert all(row.follows for row in beside(paper.figures(), lambda variant: found[variant]))
    with pytest.raises(UserError, match="no variant 'depths'; did you mean 'depth'"):
        paper.size("depths")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with masks, phrases and depth."""
    folder = tmp_path_factory.mktemp("dense")
    lines = []
    for number in range(4):
        rng, name = np.random.default_rng(number), f"{number}.png"
        for kind, values in {
            "images": rng.integers(0, 255, (40, 60, 3), dtype=np.uint8),
            "masks": rng.integers(0, 2, (40, 60), dtype=np.uint8),
            "depth": rng.integers(400, 9000, (40, 60)).astype(np.uint16),
        }.items():
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(folder / kind / name)
        lines.append(json.dumps({"image": f"images/{name}", "phrase": "the red circle", "mask": f"masks/{name}"}))
    (folder / "referring.jsonl").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("blue star\nred circle\n")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each task, a step old."""
    folder = tmp_path_factory.mktemp("runs")
    for task in COUNTED:
        line = ["train", "vpd", "--data", str(data), "--out", str(folder / task), "--steps", "1"]
        assert main([*line, "--set", "batch=2", f"task={task}"]) == 0
    return {task: folder / task / "model" for task in COUNTED}


@pytest.mark.parametrize("task", COUNTED)
def test_what_was_loaded_is_saved_and_loads_again(task: str, trained: dict[str, Path], tmp_path: Path) -> None:
    once = load(trained[task])
    once.save(tmp_path / "again")
    kept, again = once.model.state_dict(), load(tmp_path / "again").model.state_dict()
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.light("vpd", "use")
def test_one_s_own_pictures_are_learned_and_a_fresh_process_writes_what_it_sees(
    data: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    picture = str(data / "images/3.png")
    words = [["segment", picture, "--model", str(place), "--out", str(tmp_path / task), "--json", "--sheet",
              str(tmp_path / f"{task}.png"),
              *(["--phrase", "the red circle"] if task == "referring" else [])]
             for task, place in trained.items()]  # fmt: skip
    words.append(["embed", picture, "--model", str(trained["segmentation"])])
    code = f"from tessera.cli import main\nfor words in {words!r}: assert main(words) == 0"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rest, told = ran.stdout.strip(), []
    while rest:
        one, end = json.JSONDecoder().raw_decode(rest)
        told.append(one[0])
        rest = rest[end:].strip()
    files = {task: np.asarray(Image.open(tmp_path / task / "000-3.png")) for task in trained}
    assert all(values.shape == (40, 60) for values in files.values())
    assert all(Image.open(tmp_path / f"{task}.png").size == (260, 85) for task in trained)
    one = tessera.load(trained["segmentation"])
    assert isinstance(one, Perceiver) and one.classes == ("blue star", "red circle")
    assert np.array_equal(one.segment([Path(picture)])[0], files["segmentation"])
    assert sum(told[0]["seen"].values()) == pytest.approx(1)
    assert np.array_equal(load(trained["referring"]).refer([picture], ["the red circle"])[0] * 255, files["referring"])
    deep = load(trained["depth"]).depth([Path(picture)])[0]
    assert np.abs(deep * 1000 - files["depth"]).max() <= 1 and 0 < deep.min() <= deep.max() < 10
    assert told[2]["seen"] == {"nearest": pytest.approx(deep.min()), "furthest": pytest.approx(deep.max())}
    assert one.embed([Path(picture)])[0] == pytest.approx(told[3]["vector"], abs=1e-4) and len(told[3]["vector"]) == 176


def test_what_a_model_was_not_trained_for_is_refused(
    data: Path, trained: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = str(data / "images/3.png")
    for task, more, sentence in (
        ("segmentation", ["--phrase", "a"], "--phrase is of referring, and the model in"),
        ("referring", [], "finds what a phrase names; give --phrase"),
        ("referring", ["--phrase", "the <pad>"], "'<pad>' is not of the tokenizer's vocabulary"),
        ("depth", ["--scene", "rooms"], "no kind of scene 'rooms'; did you mean 'room'"),
    ):
        line = ["segment", picture, "--model", str(trained[task]), "--out", str(tmp_path / "out"), *more]
        assert main(line) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    one = load(trained["segmentation"])
    with pytest.raises(UserError, match="trained for segmentation, not for depth"):
        one.depth([picture])
    with pytest.raises(UserError, match="vectors of pictures alone"):
        one.embed([picture])
    config = trained["depth"] / "config.json"
    before = config.read_text()
    config.write_text(before.replace('"max_depth"', '"max_death"'))
    with pytest.raises(CheckpointError, match="unknown key 'max_death'; did you mean 'max_depth'"):
        load(trained["depth"])
    config.write_text(before)


@pytest.mark.light("vpd", "weights")
def test_a_stable_diffusion_folder_is_read_and_seen_as_diffusers_and_transformers_classes_see_it(
    data: Path, tmp_path: Path
) -> None:
    folder = stable_diffusion_folder(tmp_path / "sd")
    torch.manual_seed(0)
    tower = CLIPTextModel(CLIPTextConfig(
        vocab_size=6, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=24, bos_token_id=4, eos_token_id=5, pad_token_id=5,
    ))  # fmt: skip
    tower.save_pretrained(folder / "text_encoder")
    classes = tmp_path / "two"
    classes.mkdir()
    for name in ("images", "masks"):
        (classes / name).symlink_to(data / name)
    (classes / "classes.txt").write_text("ab\nb\n")
    settings = {"batch": "2", "optimiser.lr": "0", "model.gamma": "0", "model.image_size": "16", "templates": "plain",
                "model.width": "16"}  # fmt: skip
    options = TrainOptions(
        tmp_path / "run", data=(str(classes),), steps=1, size="published", precision="fp32",
        parts={"diffusion": str(folder)}, settings=settings,
    )  # fmt: skip
    made = load(get("vpd").train(options)).model
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    vae, unet = AutoencoderKL.from_pretrained(folder / "vae"), UNet2DConditionModel.from_pretrained(folder / "unet")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode()  # unscaled, as the official code has it
        words = torch.stack([
            torch.stack([tower(tokenizer(one.format(name), return_tensors="pt").input_ids).pooler_output[0]
                         for one in PLAIN]).mean(0) for name in ("ab", "b")
        ])  # fmt: skip
        torch.testing.assert_close(made.encode(pictures), latents, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(made.class_vectors, words, atol=1e-6, rtol=1e-5)
        wanted = UNetPyramid(unet)(latents, torch.ones(2).long(), words.expand(2, -1, -1))
        for ours, theirs in zip(made.features(made.encode(pictures), made.words(2)), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    for name in ("images", "masks"):
        (strange / name).symlink_to(data / name)
    (strange / "classes.txt").write_text("sky\na <pad> b\n")
    for where, options, sentence in (
        (data, {"settings": {"task": "segment"}}, "no dense task 'segment'"),
        (data, {"settings": {"model.task": "depth"}}, "the task is named by --set task="),
        (data, {"settings": {"model.image_size": "60"}}, "a picture of 60 x 60 pixels does not divide into the 8 x 8"),
        (data, {"parts": {"difusion": "x"}}, "no role 'difusion' here; did you mean 'diffusion'"),
        (data, {"size": "published"}, "give --parts diffusion=FOLDER"),
        (strange, {}, "cannot read the class name 'a <pad> b'"),
        (data, {"parts": {"text": "mini/clop"}}, "no mini part 'mini/clop'"),
    ):
        with pytest.raises(UserError, match=sentence):
            get("vpd").train(TrainOptions(tmp_path / "run", data=(str(where),), **options))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="has no folder 'unet'"):
        get("vpd").train(TrainOptions(tmp_path / "run", data=(str(data),), parts={"diffusion": str(data)}))
    assert not (tmp_path / "run").exists()


def test_masks_of_another_size_stop_a_training_that_has_nothing_else(data: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    (wrong / "masks").mkdir(parents=True)
    (wrong / "images").symlink_to(data / "images")
    (wrong / "classes.txt").write_text("sky\nsea\n")
    for number in range(4):
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(wrong / f"masks/{number}.png")
    options = TrainOptions(tmp_path / "run", data=(str(wrong),), steps=1, settings={"batch": "2"})
    with pytest.raises(DataError, match="the target is of 20 x 20 pixels and its picture of 60 x 40") as caught:
        get("vpd").train(options)
    assert isinstance(caught.value, TesseraError)


def test_arms_differ_as_they_say_and_claims_are_of_them(tmp_path: Path) -> None:
    study = headline(tmp_path, TINY)
    assert [arm.name for arm in study.arms] == list(ARMS) and "vpd" in ARMS
    assert {claim.metric for claim in CLAIMS} == {METRIC}
    bench = Bench("vpd", ARMS, CLAIMS, TINY, tmp_path, title="x")
    torch.manual_seed(0)
    plain, random, shuffled, bare, late = (
        bench.model(ARMS[name], 0) for name in ("vpd", "random", "shuffled names", "no maps", "t=999")
    )
    assert plain.pyramid.channels(7) == [176 + 7] and bare.pyramid.channels(7) == [176]
    assert (plain.config.timestep, late.config.timestep) == (1, 999)
    left, right = (one.pyramid.unet.conv_in.weight for one in (plain, random))
    assert not torch.equal(left, right) and torch.equal(left, shuffled.pyramid.unet.conv_in.weight)
    assert not torch.equal(plain.class_vectors, shuffled.class_vectors)
    torch.testing.assert_close(plain.class_vectors.sum(0), shuffled.class_vectors.sum(0), atol=1e-3, rtol=1e-3)
    shorter = headline(tmp_path, Budget(**{**vars(TINY), "steps": 2}))
    assert not {study.arm_hash(arm) for arm in study.arms} & {shorter.arm_hash(arm) for arm in shorter.arms}


def test_an_arm_learns_from_latents_that_are_encoded_once_and_judges_every_held_out_picture(tmp_path: Path) -> None:
    bench = Bench("vpd", LATENTS, (), TINY, tmp_path, title="x")
    outcomes = {name: bench.outcome(name, 0) for name in LATENTS}
    for outcome in outcomes.values():
        assert (outcome.steps, outcome.samples) == (1, 2)
        assert len(outcome.items[METRIC]) == 3 and outcome.names == [METRIC, "mIoU"]
    scaled, plain = (bench.readers[one](bench.source("heldout")[0])["latents"] for one in (True, False))
    assert scaled.shape == plain.shape == (16, 16, 16) and not np.allclose(scaled, plain)
    assert not [*(tmp_path / "training").iterdir()]
    assert get("vpd").studies is FURTHER
    with pytest.raises(UserError, match="leave out --data and --model"):
        FURTHER["latents"](data=Path("x"), model=None)


def test_the_budget_shows_every_arm_as_many_pictures_as_there_are_to_learn_from() -> None:
    assert BUDGET.steps * BUDGET.batch >= BUDGET.train_pictures
