"""VL-GPT on published parts: tiny random weights in the releases' layouts, from the command line to a drawing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tessera.assistant import load
from tessera.cli import main
from tessera.data.worlds import open_world
from tessera.errors import CheckpointError, UserError
from tessera.models.diffusion import Painter, load_published
from tessera.models.vlgpt import CausalTokenizerModel, add_adapters, has_adapters, merge_adapters
from tessera.papers.settings import change
from tessera.papers.vl_gpt import PUBLISHED, Run, tokenizer_config
from tessera.papers.vl_gpt_data import Streams
from tessera.zoo.foundation import load_mini, load_published_parts, read_part, read_tokenizer
from tests.papers.published_tiny import SMALL, published_parts, train_line
from tests.train.tiny import metrics

ROOT = Path(__file__).parents[2]
STEPS = {
    "align.batch": 4, "pretrain.batch": 2, "pretrain.steps": 2, "instruct.batch": 2, "model.draw_steps": 2,
    "model.lora_rank": 4,
}  # fmt: skip
PICTURE = [600, *[602] * 8, 601]
TRAINED = ("regression_head.weight", "image_token_rows.embedding", "image_token_rows.head")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return published_parts(tmp_path_factory.mktemp("parts"), open_world("scenes"))


@pytest.fixture(scope="module")
def run(parts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training of one step of stage A, two of B and one of C leaves behind."""
    out = tmp_path_factory.mktemp("published") / "run"
    assert main([*train_line(out, parts, STEPS), "--steps", "3"]) == 0
    return out


def joined(parts: dict[str, str], seed: int = 0) -> Run:
    """A recipe's run whose model has been put together, without any training."""
    torch.manual_seed(seed)
    settings = {name: str(value) for name, value in (SMALL | STEPS).items()}
    foundation = load_published_parts(parts)
    world = open_world("scenes")
    made = Run(foundation, change(PUBLISHED, settings), Streams([(world, 1.0)], foundation.tokenizer, 8))
    tokenizer = CausalTokenizerModel(tokenizer_config(foundation, made.recipe), foundation.vision)
    made.align(tokenizer)
    made.model = made.join(tokenizer)
    return made


def page() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of words and one picture, and pixels."""
    draw = torch.Generator().manual_seed(0)
    return torch.tensor([[1, 300, *PICTURE, 301, 302]]), torch.randn(1, 3, 32, 32, generator=draw)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    ids, pixels = page()
    return model.eval()(ids, pixel_values=pixels).logits


@pytest.mark.light("vl-gpt", "weights")
def test_one_step_of_each_stage_leaves_a_plain_model(run: Path, parts: dict[str, str]) -> None:
    assert [line["stage"] for line in metrics(run)] == ["align", "pretrain", "pretrain", "instruct"]
    config = json.loads((run / "model" / "config.json").read_text())
    size = len(read_tokenizer(parts["language"]))
    assert [config[f"image_{name}_id"] for name in ("start", "end", "placeholder")] == [size, size + 1, size + 2]
    assert config["image_token_rows"] == "separate" and config["text_config"]["vocab_size"] == size
    assert not [name for name in load_file(run / "model" / "model.safetensors") if "lora" in name or "base_" in name]


def test_a_fresh_process_draws_with_the_model(run: Path, tmp_path: Path) -> None:
    line = ["draw", "--model", str(run / "model"), "--out", str(tmp_path), "a large red star"]
    done = subprocess.run([sys.executable, "-m", "tessera", *line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "000-0.png").size == (16, 16)


def test_stages_b_and_c_change_adapters_regression_head_and_image_rows_alone(run: Path, parts: dict[str, str]) -> None:
    start = load_file(run / "stages" / "1-pretrain" / "weights.safetensors")
    learned = load_file(run / "stages" / "2-instruct" / "weights.safetensors")
    saved = load_file(run / "model" / "model.safetensors")
    base = read_part(LlamaForCausalLM, parts["language"], torch.float32).state_dict()
    adapters = {name for name in learned if ".lora_" in name}
    assert learned.keys() == start.keys() == adapters | set(TRAINED)
    assert len(adapters) == 2 * 7 * 2
    assert not any(torch.equal(learned[name], start[name]) for name in learned)
    for name in TRAINED:
        assert torch.equal(saved[name], learned[name])
    for name, weight in base.items():
        place = f"language_model.{name.removesuffix('.weight')}"
        if f"{place}.lora_A.default.weight" in learned:
            scale = 32 / STEPS["model.lora_rank"]
            weight = (
                weight + scale * learned[f"{place}.lora_B.default.weight"] @ learned[f"{place}.lora_A.default.weight"]
            )
        torch.testing.assert_close(saved[f"{place}.weight"], weight, rtol=0, atol=1e-7)


@pytest.mark.light("vl-gpt", "weights")
def test_everything_frozen_is_saved_as_it_was_loaded(run: Path, parts: dict[str, str]) -> None:
    saved = load_file(run / "model" / "model.safetensors")
    foundation = load_published_parts(parts)
    for name, weight in foundation.vision.state_dict().items():
        assert torch.equal(saved[f"image_tokenizer.vision.{name}"], weight)
    for name, weight in load_file(run / "stages" / "0-align" / "weights.safetensors").items():
        assert torch.equal(saved[f"image_tokenizer.{name}"], weight)
    painter = load_published(parts["painter"], parts["adapter"], parts["image_encoder"])
    loaded = Painter.from_pretrained(run / "model" / "painter")
    assert torch.equal(painter.scheduler.alphas_cumprod, loaded.scheduler.alphas_cumprod)
    assert not painter.scheduler.config.clip_sample and not loaded.scheduler.config.clip_sample
    before, after = painter.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_new_adapters_give_the_logits_of_the_bare_language_model(parts: dict[str, str]) -> None:
    model = joined(parts).model
    add_adapters(model)
    base = read_part(LlamaForCausalLM, parts["language"], torch.float32)
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits[..., :600], base(ids).logits)


def test_merged_saved_and_loaded_models_give_the_logits_of_the_adapters(parts: dict[str, str], tmp_path: Path) -> None:
    made = joined(parts)
    plain = logits(made.model)
    add_adapters(made.model)
    for name, parameter in made.model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = logits(made.model)
    assert not torch.allclose(before, plain, atol=1e-2)
    with pytest.raises(UserError, match="merge_adapters"):
        made.assistant().save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    merge_adapters(made.model)
    assert not has_adapters(made.model)
    torch.testing.assert_close(logits(made.model), before, rtol=0, atol=1e-5)
    made.assistant().save(tmp_path / "model")
    torch.testing.assert_close(logits(load(tmp_path / "model", device="cpu").model), before, rtol=0, atol=1e-5)


@pytest.mark.light("vl-gpt", "weights")
def test_a_saved_model_reads_and_says_what_the_parts_would(run: Path, parts: dict[str, str]) -> None:
    assistant, tokenizer = load(run / "model", device="cpu"), read_tokenizer(parts["language"])
    text = "a large red star. \u00dcber [IMG]"
    ids = assistant.builder.encode(text)
    assert ids == tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert assistant.tokenizer.decode(ids) == tokenizer.decode(ids) == text


def test_a_model_loaded_in_bfloat16_draws(run: Path) -> None:
    assert load(run / "model", torch.bfloat16, "cpu").draw("a red star").size == (16, 16)


def test_image_features_before_the_resampler_and_scaled_embeddings_can_be_chosen(
    parts: dict[str, str], tmp_path: Path
) -> None:
    chosen = {"tokenizer.image_condition": "encoder", "model.standardise": "global"}
    assert main([*train_line(tmp_path / "run", parts, STEPS | chosen), "--steps", "3"]) == 0
    assistant = load(tmp_path / "run" / "model", device="cpu")
    assert assistant.model.image_tokenizer.config.image_condition_tokens == 17  # patches and class token
    assert assistant.model.standardise.std.unique().numel() == 1 and float(assistant.model.standardise.std[0]) != 1
    assert assistant.draw("a red star").size == (16, 16)


def test_rows_of_image_tokens_stay_apart_where_the_matrix_has_room_for_them(
    parts: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(parts["language"], tmp_path / "padded")
    language = read_part(LlamaForCausalLM, parts["language"], torch.float32)
    language.resize_token_embeddings(640)
    language.save_pretrained(tmp_path / "padded")
    model = joined({**parts, "language": str(tmp_path / "padded")}).model
    assert model.config.image_token_rows == "separate" and model.config.image_start_id == 600
    assert logits(model).shape[-1] == 640


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"language": None}, r"needs a checkpoint for language; give each as --parts ROLE=FOLDER"),
        ({"languge": "x"}, r"no part 'languge' at this size of VL-GPT; did you mean 'language'\?"),
        ({"text_encoder": "x"}, "no part 'text_encoder' at this size"),
        ({"language": "/nowhere/llama"}, "/nowhere/llama cannot be loaded"),
        ({"language": "vision"}, r"clip (cannot be loaded|does not hold a LlamaForCausalLM)"),
        ({"vision": "language"}, r"llama (cannot be loaded|does not hold a CLIPVisionModel)"),
        ({"image_encoder": "vision"}, "gives states 32 wide"),
        ({"adapter": "language"}, "llama"),
    ],
)
def test_a_wrong_part_is_refused_in_a_sentence(
    changed: dict[str, str | None], sentence: str, parts: dict[str, str]
) -> None:
    given = parts | {role: parts.get(place, place) for role, place in changed.items() if place}  # type: ignore[arg-type]
    given = {role: place for role, place in given.items() if changed.get(role, "") is not None}
    with pytest.raises((UserError, CheckpointError), match=sentence):
        load_published_parts(given)


def test_a_cut_and_a_pickled_language_model_are_refused_in_a_sentence(parts: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(parts["language"], tmp_path / "cut")
    weights = tmp_path / "cut" / "model-00001-of-00005.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cut"):
        load_published_parts({**parts, "language": str(tmp_path / "cut")})
    for file in (tmp_path / "cut").glob("model*"):
        file.unlink()
    (tmp_path / "cut" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_published_parts({**parts, "language": str(tmp_path / "cut")})


def test_mini_parts_have_no_adapter_file() -> None:
    with pytest.raises(UserError, match="no part 'adapter' at this size"):
        load_mini({"adapter": "x"})


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("align.bach=4", "there is no setting 'align.bach'; did you mean 'align.batch'?"),
        ("align.batch=many", "align.batch takes a whole number, not 'many'"),
        ("lora=maybe", "lora takes true or false, not 'maybe'"),
        ("align.betas=0.9", "align.betas takes 2 values with a comma between, not '0.9'"),
        ("model.standardise=none.", "model.standardise cannot be 'none.'; did you mean 'none'?"),
        ("align.accumulate=3", "a batch of 4 does not divide into 3 parts; change one of them"),
        ("tokenizer.embed_width=8", "tokenizer.embed_width follows from the parts and cannot be set"),
        ("align.batch", "'align.batch' is not of the form key=value"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_sentence(
    setting: str, sentence: str, parts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*train_line(tmp_path / "run", parts, STEPS), setting]) == 2
    assert sentence in capsys.readouterr().err
