"""eP-ALM as a paper: its sizes, a user's pictures and questions through the command line, its study."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, ViTConfig, ViTModel

from tessera import augmented
from tessera.cli import main
from tessera.errors import CheckpointError, UserError
from tessera.models.injected.configuration import OPT
from tessera.papers.ep_alm import BASE, LARGE, RECIPES
from tessera.papers.ep_alm_study import ARMS, CLAIMS, METRIC, Bench, Budget, headline
from tessera.papers.figures import beside
from tessera.papers.registry import TrainOptions, get
from tessera.zoo.parts import load_tokenizer
from tests.papers.path_to_loss import files_on_the_way_to

SLUG = "ep-alm"
TINY = Budget(steps=2, batch=2, train_pictures=20, questions=4)


@pytest.mark.light("ep-alm", "size")
def test_the_size_command_counts_what_is_trained_beside_opt_2_7b(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", SLUG, "--variant", BASE, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    linear, prompt = 6 * (768 * 2560 + 2560), 10 * 2560 + 2 * (2560**2 + 2560)
    assert found["parameters"]["connector"] == linear == 11_811_840
    assert found["parameters"]["prompt"] == prompt == 13_137_920
    assert found["parameters"]["trained"] == 24_949_760
    frozen = found["parameters"]["language"] + found["parameters"]["vision"]
    assert frozen / (frozen + found["parameters"]["trained"]) > 0.99


@pytest.mark.light("ep-alm", "size")
def test_every_published_figure_follows() -> None:
    paper = get(SLUG)
    rows = beside(paper.figures(), paper.size)
    assert len(rows) == 13
    assert [row.figure.name for row in rows if not row.follows] == []


def test_an_unknown_variant_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=f"no variant 'opt-6.7b-vit-l16'; did you mean '{LARGE}'"):
        get(SLUG).size("opt-6.7b-vit-l16")


def test_the_recipe_of_the_paper_schedules_both_groups() -> None:
    optimiser = RECIPES["published"].optimiser
    assert (optimiser.lr, optimiser.factors["prompt.*"] * optimiser.lr) == (2e-5, 1e-5)
    assert round(optimiser.warmup * RECIPES["published"].steps) == 400
    assert OPT["opt-350m"]["word_embed_proj_dim"] == 512


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA file of eight questions about eight pictures."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(8):
        Image.fromarray(np.full((20, 20, 3), 30 * number, np.uint8)).save(folder / f"{number}.png")
        turns = [
            {"from": "human", "value": "<image>\nis it dark?"},
            {"from": "gpt", "value": "yes" if number < 4 else "no"},
        ]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "llava.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The model of a training through the command line, and the files on the way to its first loss."""
    out = tmp_path_factory.mktemp("trained") / "run"
    line = ["train", SLUG, "--data", str(data / "llava.json"), "--out", str(out), "--steps", "2", "--precision", "fp32"]
    with files_on_the_way_to("tessera.models.injected.modeling:next_token") as files:
        assert main([*line, "--set", "batch=2"]) == 0
    return out / "model", files


@pytest.fixture(scope="module")
def trained(run: tuple[Path, list[str]]) -> Path:
    """Its folder."""
    return run[0]


def test_a_step_goes_through_six_files_from_the_command_to_the_loss(run: tuple[Path, list[str]]) -> None:
    assert run[1] == [
        "cli/training.py",
        "papers/ep_alm.py",
        "train/engine.py",
        "train/step.py",
        "models/injected/modeling.py",
        "objectives/next_token.py",
    ]


@pytest.mark.light("ep-alm", "use")
def test_one_s_own_questions_are_learned_and_pictures_answered_and_captioned(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(data / "3.png")
    assert main(["ask", picture, "is it dark?", "is it bright?", "--model", str(trained), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["question"] for row in rows] == ["is it dark?", "is it bright?"]
    assert all(isinstance(row["answer"], str) for row in rows)
    assert main(["caption", picture, "--model", str(trained), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["image"] == picture


@pytest.mark.light("ep-alm", "use")
def test_a_fresh_process_answers_as_this_one(trained: Path, data: Path) -> None:
    seeing = augmented.load(trained)
    wanted = seeing.answer(str(data / "3.png"), "is it dark?")
    code = "import sys; from tessera.augmented import load; print(load(sys.argv[1]).answer(sys.argv[2], 'is it dark?'))"
    line = [sys.executable, "-c", code, str(trained), str(data / "3.png")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n") == wanted
    with pytest.raises(UserError, match="2 pictures and 1 questions"):
        seeing.answer([np.zeros((9, 9, 3), np.uint8)] * 2, ["is it dark?"])


@pytest.mark.light("ep-alm", "weights")
def test_published_parts_train_with_a_mark_of_their_own_and_what_was_trained_is_kept_alone(
    data: Path, tmp_path: Path
) -> None:
    """OPT and a ViT as transformers writes them, of tiny size, by the recipe of the paper."""
    tokenizer = load_tokenizer("mini/tokenizer")
    text = {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 32,
    }
    language = AutoConfig.for_model("opt", vocab_size=len(tokenizer) + 8, max_position_embeddings=64, **text)
    AutoModelForCausalLM.from_config(language).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    vision = ViTConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32)
    ViTModel(vision).save_pretrained(tmp_path / "vit")
    parts = {"vision": str(tmp_path / "vit"), "language": str(tmp_path / "opt")}
    settings = {"batch": "2", "model.levels": "2", "model.start": "1", "model.end": "3"}
    given = TrainOptions(
        tmp_path / "run",
        (str(data / "llava.json"),),
        2,
        size="published",
        parts=parts,
        settings=settings,
        precision="fp32",
    )
    folder = get(SLUG).train(given)
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / augmented.PARTS).read_text()) == parts
    seeing = augmented.load(folder)
    seeing.max_new_tokens = 3
    assert "</a>" in seeing.tokenizer.get_vocab()
    assert isinstance(seeing.answer(str(data / "3.png"), "is it dark?"), str)
    (folder / augmented.PARTS).unlink()
    with pytest.raises(CheckpointError, match="does not name the frozen parts"):
        augmented.load(folder)


def test_what_cannot_be_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    for changed, sentence in (
        ({"settings": {"model.levels": "9"}}, "levels is 9, but 3 layers take a class token; give 0 to 3"),
        ({"settings": {"model.end": "5"}}, "name no layers of a language model with 4"),
        ({"settings": {"mark": "</a>"}}, "the language model rows for 2048"),
        ({"settings": {"task": "captions"}}, "the data hold no captions"),
        ({"parts": {"eyes": "x"}}, "there is no part 'eyes'"),
        ({"size": "published"}, "needs both frozen parts"),
    ):
        options = TrainOptions(tmp_path / "run", (str(data / "llava.json"),), **changed)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=sentence):
            get(SLUG).train(options)
    assert not (tmp_path / "run").exists()


def test_arms_differ_in_where_the_picture_enters_and_share_their_connector_and_prompt(tmp_path: Path) -> None:
    assert len(headline(tmp_path, TINY).arms) == len(ARMS) == 4 and len(CLAIMS) == 3
    bench, made = Bench(TINY, tmp_path), {}
    for arm in ARMS:
        torch.manual_seed(0)
        made[arm] = bench.model(arm)
    sizes = {arm: sum(weight.numel() for weight in model.trained().parameters()) for arm, model in made.items()}
    assert sizes["injected"] == sizes["last level"] == sizes["one input"] == sizes["prompt"] + 192 * 256 + 256
    for arm in ("last level", "one input"):
        assert torch.equal(made[arm].connector[0].project.weight, made["injected"].connector[0].project.weight)


def test_an_arm_is_trained_and_judged_on_every_question_and_the_prompt_alone_sees_nothing(tmp_path: Path) -> None:
    bench = Bench(TINY, tmp_path)
    found = bench.outcome("injected", 0)
    assert (found.steps, found.samples, len(found.items[METRIC])) == (2, 4, 4)
    blind = bench.model("prompt").eval()
    ids = torch.randint(6, 60, (2, 5))
    seen = blind.encode_images(torch.randn(2, 3, 64, 64))
    assert torch.equal(blind(ids, class_states=seen).logits, blind(ids).logits)
