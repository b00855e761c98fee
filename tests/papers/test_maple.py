"""MaPLe as a paper: what it counts, trains and compares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

import tessera
from tessera.adapt.prompts import METHODS
from tessera.cli import main
from tessera.errors import CheckpointError, UserError
from tessera.evaluate.generalisation import base_and_novel
from tessera.papers.figures import beside
from tessera.papers.maple import VARIANTS
from tessera.papers.maple_study import (
    ARMS,
    BUDGET,
    CLAIMS,
    FURTHER,
    GAIN,
    KINDS,
    SHOTS,
    Budget,
    Things,
    cross_data_set,
    domain_shift,
    headline,
)
from tessera.papers.registry import TrainOptions, get
from tessera.prompted import PromptedClassifier, load
from tessera.study.classifying import Lesson
from tessera.zoo.parts import load_tokenizer, locate
from tests.adapt.tiny_clip import tiny

TRAINED = {
    "maple": 3_555_072,
    "maple-cross-data-set": 1_185_024,
    "maple-shallow": 395_008,
    "maple-shared": 403_200,
    "coop": 2_048,
    "cocoop": 35_360,
    "vpt": 12 * 8 * 768,
    "language": 12 * 4 * 512,
    "ivlp": 12 * 2 * (512 + 768),
}
NAMES = ("blue circle", "cyan star", "red square")
TINY = Budget(
    lesson=Lesson(steps=2, batch=4, kind="adamw", lr=2e-3, smoothing=0.0), train_pictures=60, heldout_pictures=60
)


@pytest.mark.light("maple", "size")
def test_size_tells_the_counted_figures_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "maple", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: one["parameters"]["trained"] for name, one in found.items()} == TRAINED
    assert {one["parameters"]["clip"] for one in found.values()} == {149_620_737}
    assert found["maple"]["parameters"] == {
        "clip": 149_620_737,
        "trained": 3_555_072,
        "first text prompts": 1_024,
        "deep text prompts": 8_192,
        "first projection": 393_984,
        "deep projections": 3_151_872,
    }
    assert found["maple"]["positions"] == {"text": 77, "vision": 199}
    assert found["maple"]["percent of clip"] == pytest.approx(2.38, abs=0.005)
    assert found["maple"]["percent of clip without its words"] == pytest.approx(2.86, abs=0.005)
    paper = get("maple")
    assert all(row.follows for row in beside(paper.figures(), lambda variant: found[variant]))
    assert tuple(paper.variants) == tuple(VARIANTS) == tuple(TRAINED)


def test_an_unknown_variant_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no variant 'maple_shared'; did you mean 'maple-shared'"):
        get("maple").size("maple_shared")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of each of three classes."""
    folder = tmp_path_factory.mktemp("pictures")
    for place, name in enumerate(NAMES):
        (folder / name).mkdir()
        for number in range(6):
            pixels = np.random.default_rng(number).integers(60 * place, 60 * place + 90, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.light("maple", "use")
def test_one_s_own_classes_are_learned_and_a_fresh_process_classifies_and_embeds(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", "maple", "--data", str(data), "--out", str(out), "--steps", "2", "--set", "batch=4"]) == 0
    assert {file.name for file in (out / "model").iterdir()} == {"prompts.safetensors", "tessera.json"}
    picture = str(data / "cyan star/3.png")
    words = [
        ["classify", picture, "--model", str(out / "model"), "--json"],
        ["embed", "red square", "--text", "--model", str(out / "model")],
    ]
    code = f"from tessera.cli import main\nfor words in {words!r}: assert main(words) == 0"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    guesses, end = json.JSONDecoder().raw_decode(ran.stdout)
    vectors = json.loads(ran.stdout[end:])
    classifier = tessera.load(out / "model")
    assert isinstance(classifier, PromptedClassifier)
    here = classifier.classify(Path(picture))
    assert [row["class"] for row in guesses[0]["classes"]] == [name for name, _ in here]
    assert sorted(name for name, _ in here) == sorted(NAMES)
    vector = classifier.embed(["red square"])[0]
    torch.testing.assert_close(vectors[0]["vector"], vector.tolist(), atol=1e-5, rtol=0)
    shown = classifier.embed([Path(picture)])
    cosines = classifier.embed(list(classifier.classes)) @ shown[0]
    assert classifier.classes[int(cosines.argmax())] == here[0][0]
    assert classifier.renamed(["owl", "lynx"]).classes == ("owl", "lynx")
    with pytest.raises(UserError, match="cannot be embedded in one call"):
        classifier.embed(["owl", Path(picture)])


def test_base_classes_are_learned_and_both_halves_and_further_sets_are_judged_by_their_own_names(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    for name in ("dark", "light"):
        (other / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (10 + number if name == "dark" else 240,) * 3).save(other / name / f"{number}.png")
    settings = {"learn": "base", "batch": "2", "shots": "2", "method": "coop", "prompts.text": "3"}
    options = TrainOptions(tmp_path / "run", data=(str(data), str(other)), steps=1, settings=settings)
    trained = load(get("maple").train(options))
    assert trained.classes == ("blue circle", "cyan star")
    assert [tuple(one.shape) for one in trained.model.learner.parameters()] == [(3, 192)]
    said = capsys.readouterr().err
    for start in ("base: ", "novel: ", f"{other}: ", "harmonic mean of base and novel: "):
        assert start in said


@pytest.mark.light("maple", "weights")
def test_a_clip_as_transformers_saves_it_is_prompted_and_its_outputs_are_that_class_s(
    data: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer("mini/tokenizer")
    made = tiny(tokenizer)
    made.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    settings = {"batch": "2", "optimiser.lr": "0", "prompts.text_depth": "1", "prompts.vision_depth": "1"}
    options = TrainOptions(
        tmp_path / "run", data=(str(data),), steps=1, size="published", precision="fp32",
        parts={"clip": str(tmp_path / "clip")}, settings=settings,
    )  # fmt: skip
    trained = load(get("maple").train(options))
    published = CLIPModel.from_pretrained(tmp_path / "clip")
    texts = tokenizer([f"a photo of a {name}." for name in NAMES], padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = published.get_text_features(texts).pooler_output
    wanted = torch.nn.functional.normalize(wanted, dim=-1)
    torch.testing.assert_close(torch.from_numpy(trained.embed(list(NAMES))), wanted, atol=1e-6, rtol=1e-5)
    card = tmp_path / "run/model/tessera.json"
    card.write_text(card.read_text().replace(str(tmp_path / "clip"), locate("mini/clip")))
    with pytest.raises(CheckpointError, match="of a CLIP of another size: text width 16, here 192"):
        load(tmp_path / "run/model")


def test_what_cannot_be_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    for name in ("owl", "a <pad> b"):
        (strange / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(strange / name / "0.png")
    for data_path, options, sentence in (
        (data, {"settings": {"method": "mapel"}}, "no prompt method 'mapel'; did you mean 'maple'"),
        (data, {"settings": {"method": "zero-shot"}}, "'zero-shot' has no prompts to train"),
        (data, {"settings": {"prompts.text_depth": "9", "method": "language"}}, "9 layers do not fit the 3"),
        (data, {"parts": {"clap": "x"}}, "no role 'clap' here; did you mean 'clip'"),
        (data, {"size": "published"}, "give --parts clip=FOLDER"),
        (strange, {}, "cannot read the class name 'a <pad> b'"),
        (strange, {"settings": {"learn": "base"}}, "2 classes cannot be halved"),
    ):
        given = TrainOptions(tmp_path / "run", data=(str(data_path),), **options)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=sentence):
            get("maple").train(given)
    assert not (tmp_path / "run").exists()


def test_every_arm_is_a_method_of_one_learner_and_every_claim_is_of_arms_that_train(tmp_path: Path) -> None:
    study = headline(tmp_path, TINY)
    assert {arm.name for arm in study.arms} == set(ARMS) == METHODS.keys() - {"maple-shared"}
    counts = {arm.name: arm.config["parameters"] for arm in study.arms}
    assert counts["zero-shot"] == 0 and counts["maple"] == 3 * (2 * 192 + 192 * 193)
    assert not any("zero-shot" in claim.arms for claim in CLAIMS)
    shorter = headline(tmp_path, Budget(**{**vars(TINY), "heldout_pictures": 61}))
    assert not {study.arm_hash(arm) for arm in study.arms} & {shorter.arm_hash(arm) for arm in shorter.arms}


def test_arms_learn_from_the_same_shots_and_the_plain_clip_gains_nothing_on_itself(tmp_path: Path) -> None:
    study = headline(tmp_path, TINY)
    outcomes = {arm.name: arm.run(0) for arm in study.arms if arm.name in ("zero-shot", "coop", "maple")}
    assert (outcomes["zero-shot"].steps, outcomes["zero-shot"].value(GAIN)) == (0, 0.0)
    assert {(outcomes[arm].steps, outcomes[arm].samples) for arm in ("coop", "maple")} == {(2, 8)}
    for outcome in outcomes.values():
        assert outcome.names == sorted([GAIN, "base", "harmonic mean", "mean of sets", "novel"])
        assert outcome.value("base") - outcomes["zero-shot"].value("base") == pytest.approx(outcome.value(GAIN))
        assert len(outcome.items["base"]) + len(outcome.items["novel"]) == TINY.heldout_pictures
    assert not [*(tmp_path / "training").iterdir()]


def test_dusk_is_darker_than_day_and_classes_say_what_is_seen() -> None:
    day, dusk = (Things("colour and shape", style, 4, 4).source("classes") for style in ("day", "dusk"))
    assert day.fingerprint() != dusk.fingerprint()
    for place in range(4):
        light, dark = (np.asarray(one[place].images[0].pil(), float).mean() for one in (day, dusk))
        assert 0.35 < dark / light < 0.41
        assert day[place].text == dusk[place].text
    with pytest.raises(UserError, match="no style 'dawn'"):
        Things("colour", "dawn", 4, 4)


def test_further_studies_judge_other_names_and_other_lights(tmp_path: Path) -> None:
    for study, sets in ((cross_data_set, 2), (domain_shift, 4)):
        made = study(tmp_path / "maple-further", TINY)
        assert len(made.config["judged on"]) == sets and len(made.arms) == len(ARMS)
        assert len(made.config["classes"]) == 48
    assert get("maple").studies is FURTHER
    with pytest.raises(UserError, match="leave out --data and --model"):
        FURTHER["domain-shift"](data=Path("x"), model=None)


def test_the_budget_gives_each_base_class_its_shots_ten_times() -> None:
    base, _ = base_and_novel(KINDS["colour and shape"][0])
    assert BUDGET.lesson.steps * BUDGET.lesson.batch == 10 * SHOTS * len(base)
