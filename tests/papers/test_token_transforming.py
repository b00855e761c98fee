"""Token Transforming as a paper: its sizes, classifiers taken and trained, and the contract of its study."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification, ViTModel

from tessera.classifier import load as load_classifier
from tessera.cli import main
from tessera.errors import UserError
from tessera.evaluate.pixel_probe import PixelHead
from tessera.evaluate.probes import unexplained
from tessera.papers.figures import beside
from tessera.papers.pictures import CloseUps, Shapes
from tessera.papers.registry import get
from tessera.papers.token_transforming import LLAVA
from tessera.papers.token_transforming_measures import lost, meetings
from tessera.papers.token_transforming_study import (
    ARMS,
    CHANGED,
    IOU,
    KEEPS,
    MEAN_KL,
    SIZE,
    SMALL_KEEPS,
    Bench,
    accuracy_at,
    changed_at,
    divergence,
    headline,
    iou_at,
    lost_at,
)
from tessera.papers.token_transforming_study import kl_at as kl
from tessera.reduce import create
from tessera.study.classifying import METRIC, Budget, Lesson
from tessera.study.engine import run

SLUG = "token-transforming"
TINY = Budget(lesson=Lesson(steps=2, batch=4), train_pictures=12, heldout_pictures=6)
SMALL = ["model.hidden_size=24", "model.num_attention_heads=2", "model.num_hidden_layers=4", "batch=8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve dark pictures and twelve bright ones."""
    folder = tmp_path_factory.mktemp("greys")
    for name, level in (("dark", 20), ("light", 190)):
        (folder / name).mkdir()
        for number in range(12):
            Image.fromarray(np.full((40, 40, 3), level + number, np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training through the command line."""
    out = tmp_path_factory.mktemp("trained") / "run"
    line = ["train", SLUG, "--data", str(data), "--out", str(out), "--steps", "30", "--precision", "fp32", "--set"]
    assert main([*line, *SMALL, "mixing.chance=0", "reduce.reducer=column", "reduce.keep=0.6"]) == 0
    return out


@pytest.mark.light("token-transforming", "size")
def test_the_size_command_counts_every_schedule_of_deit_s_and_what_w_costs_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["size", SLUG, "--variant", "keep-0.65", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == {"total": 22_050_664, "added": 0}
    assert found["tokens"] == {"first block": 197, "last block": 56}
    assert found["gmacs"]["without W"] == pytest.approx(2.799, abs=5e-4)
    # Of each step: the class token's row, similarities of keys 64 wide, the product, the sizes.
    making = sum(384 * (1 + n) + m * n * (64 + 384 + 1) for n, m in ((196, 128), (128, 84), (84, 55)))
    assert found["gmacs"]["making W"] == pytest.approx(making / 1e9, rel=0.005)
    assert found["gmacs"]["total"] == pytest.approx(found["gmacs"]["without W"] + making / 1e9, rel=1e-6)


@pytest.mark.light("token-transforming", "size")
def test_every_counted_schedule_follows() -> None:
    paper = get(SLUG)
    sizes = paper.size()
    rows = beside(paper.figures(), sizes.__getitem__)
    assert len(rows) == 7
    assert all(row.follows for row in rows)
    last = {name: one["tokens"]["last block"] for name, one in sizes.items() if name != LLAVA}
    assert last == {"none": 197, "remove-12": 53, "remove-13": 41, "keep-0.7": 69, "keep-0.65": 56, "keep-0.6": 44}


@pytest.mark.light("token-transforming", "size")
def test_the_prefill_of_llava_with_fewer_tokens_behind_its_second_layer_is_that_of_the_closed_form() -> None:
    found, width, mlp, words = get(SLUG).size(LLAVA), 4096, 11008, 32064
    costs = found["prefill FLOPs"]

    def layers(length: int, count: int) -> int:
        return 2 * count * (length * (4 * width**2 + 3 * width * mlp) + 2 * length**2 * width)

    assert costs["all tokens"] == layers(626, 32) + 2 * 626 * width * words
    assert costs["without W"] == layers(626, 2) + layers(194, 30) + 2 * 194 * width * words
    # Whom a picture's tokens attend to, their likeness to the centres, the product, the sizes.
    assert costs["making W"] == 2 * (576**2 * width + 576 * 144 * (2 * width + 1))
    assert costs["total"] < 0.36 * costs["all tokens"]
    assert found["tokens"] == {"first 2 layers": 576, "last layer": 144}


def test_an_unknown_variant_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="token-transforming has no variant 'keep-.65'; did you mean 'keep-0.65'"):
        get(SLUG).size("keep-.65")


def test_the_show_command_says_what_is_the_paper_s_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", SLUG]) == 0
    page = capsys.readouterr().out
    assert "40 % fewer FLOPs" in page
    assert "of this library's making" in page


@pytest.mark.light("token-transforming", "use")
def test_one_s_own_classes_are_learned_and_answered_with_fewer_tokens_in_a_fresh_process(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((trained / "model/config.json").read_text())["backbone_config"]
    assert (config["model_type"], config["reducer"], config["keep"]) == ("tessera-vit-reduced", "column", 0.6)
    full = json.loads((trained / "full/config.json").read_text())["backbone_config"]
    assert full["model_type"] == "tessera-vit"
    Image.new("RGB", (50, 70), (200,) * 3).save(tmp_path / "new.png")
    given = [str(tmp_path / "new.png"), "--model", str(trained / "model")]
    done = subprocess.run(
        [sys.executable, "-m", "tessera", "classify", *given, "--json"], capture_output=True, text=True, check=True
    )
    (row,) = json.loads(done.stdout)
    assert row["classes"][0]["class"] == "light"
    assert main(["embed", *given]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["vector"]) == 24


@pytest.mark.light("token-transforming", "use")
def test_a_trained_classifier_is_taken_as_it_is_with_any_reducer(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", SLUG, "--parts", f"classifier={trained / 'full'}", "--out", str(tmp_path / "run")]
    assert main([*line, "--data", str(data), "--set", "reduce.reducer=tome", "reduce.blocks=1,2"]) == 0
    said = capsys.readouterr().err
    assert "all tokens: held out" in said and "fewer tokens: held out" in said
    config = json.loads((tmp_path / "run/model/config.json").read_text())["backbone_config"]
    assert (config["reducer"], config["reduce_blocks"]) == ("tome", [1, 2])
    weights = [load_file(folder / "model.safetensors") for folder in (trained / "full", tmp_path / "run/model")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.light("token-transforming", "weights")
def test_a_published_encoder_learns_one_s_own_classes_and_goes_on_with_fewer_tokens(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = Dinov2Config(
        image_size=32, patch_size=8, hidden_size=32, mlp_ratio=2, num_hidden_layers=4, num_attention_heads=2
    )
    Dinov2Model(shape).save_pretrained(tmp_path / "dino")
    line = ["train", SLUG, "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "2", "--set", "batch=8"]
    assert main([*line, "--parts", f"backbone={tmp_path / 'dino'}"]) == 0
    capsys.readouterr()
    full, reduced = (load_classifier(tmp_path / "run" / name).model for name in ("full", "model"))
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert reduced.backbone(picture).tokens.shape[1] < full.backbone(picture).tokens.shape[1] == 16
        torch.testing.assert_close(full.reduced(keep=1.0)(picture).logits, full(picture).logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(reduced(picture).logits, full.reduced()(picture).logits)


@pytest.mark.light("token-transforming", "weights")
def test_a_published_classifier_is_taken_with_its_classes_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        id2label={0: "tench", 1: "crane", 2: "crane"},
    )  # fmt: skip
    ViTForImageClassification(shape).save_pretrained(tmp_path / "published")
    line = ["train", SLUG, "--out", str(tmp_path / "run"), "--parts"]
    assert main([*line, f"classifier={tmp_path / 'published'}"]) == 0
    Image.new("RGB", (50, 70)).save(tmp_path / "new.png")
    capsys.readouterr()
    assert main(["classify", str(tmp_path / "new.png"), "--model", str(tmp_path / "run/model"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert {one["class"] for one in row["classes"]} == {"tench", "crane (1)", "crane (2)"}
    ViTModel(shape).save_pretrained(tmp_path / "headless")
    assert main([*line, f"classifier={tmp_path / 'headless'}"]) == 2
    assert "holds an encoder without a classifier's weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--set reduce.reducer=colum", "no token reducer 'colum'; did you mean 'column'"),
        ("--set reduce.blocks=3,9", "in block 9; this encoder has blocks 0 to 7"),
        ("--set reduce.keep=0", "keep is 0.0; it is above 0 and at most 1"),
        ("--set reduce.tau=-1", "tau is -1.0; it is a number above 0"),
        ("--set reduce.kep=0.5", "did you mean 'reduce.keep'"),
        ("--parts clasifier=x", "no role 'clasifier' here"),
        ("--parts classifier=/no/such", "/no/such"),
        ("--parts classifier=FULL --steps 5", "nothing is trained with --parts classifier; leave out --steps"),
        ("--parts classifier=FULL backbone=x", "with --parts classifier there is no role 'backbone'"),
        ("--parts classifier=FULL --data emoji", "the classifier knows no class"),
        ("--parts backbone=CVT", "in a plain ViT, and this classifier has a CvT"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_written(
    line: str, sentence: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "CVT" in line:
        from tessera.vision.registry import create as backbone

        backbone("cvt-mini").save_pretrained(tmp_path / "cvt")
    words = line.replace("FULL", str(trained / "full")).replace("CVT", str(tmp_path / "cvt")).split()
    assert main(["train", SLUG, "--out", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_the_study_judges_every_arm_on_one_model_a_seed_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(headline(tmp_path, TINY), 3, out=tmp_path / "result.json", work=tmp_path)
    assert list(result["arms"]) == list(ARMS)
    assert result["budget"]["equal"]
    assert set(result["arms"]["full"]["metrics"]) == {METRIC, IOU}
    names = {MEAN_KL, *map(kl, KEEPS), *map(accuracy_at, KEEPS)}
    pixels = {IOU, CHANGED, *map(iou_at, KEEPS), *map(changed_at, KEEPS)}
    for name in ARMS.keys() - {"full"}:
        metrics = result["arms"][name]["metrics"]
        once = [lost_at(keep) for keep in SMALL_KEEPS if name != "tome" or keep == 0.5]
        assert set(metrics) == {*names, *once, *(pixels if name != "row" else ())}
        assert metrics[MEAN_KL]["value"] > 0
        assert all(0 < metrics[one]["value"] < 1 for one in once)
    assert len(result["claims"]) == 15
    assert all(claim["arm"] == "column" for claim in result["claims"])
    assert len(list((tmp_path / "models").iterdir())) == 3
    monkeypatch.setattr("tessera.papers.token_transforming_study.learn", None)  # nothing is trained again
    for file in tmp_path.glob("*-seed-1.json"):
        file.unlink()
    again = run(headline(tmp_path, TINY), 3, out=tmp_path / "result.json", work=tmp_path)
    assert [one["difference"] for one in again["claims"]] == [one["difference"] for one in result["claims"]]


def test_random_dropping_differs_from_seed_to_seed_and_keeping_all_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(SLUG, CloseUps(12, 6, SIZE), TINY, tmp_path)
    whole = bench.trained(0)
    items = bench.judged(whole, 1.0, {"reducer": "column"})
    assert np.allclose(items[kl(1.0)], 0) and not any(items[changed_at(1.0)])
    assert items[iou_at(1.0)] == bench.outcome("full", 0).items[IOU]
    bench._known[1] = whole  # the same model under another seed
    assert bench.outcome("random", 0).items[kl(0.5)] != bench.outcome("random", 1).items[kl(0.5)]
    assert bench.outcome("column", 0).items == bench.outcome("column", 1).items


def test_pictures_without_classes_of_pixels_are_judged_by_their_class_alone(tmp_path: Path) -> None:
    bench = Bench(SLUG, Shapes(12, 6), TINY, tmp_path)
    assert not bench.pixel_classes
    names = {MEAN_KL, *map(kl, KEEPS), *map(accuracy_at, KEEPS), *map(lost_at, SMALL_KEEPS)}
    assert set(bench.outcome("column", 0).items) == names
    assert {claim.metric for claim in bench.study().claims} <= names


def test_close_ups_have_the_same_pictures_for_both_tasks_and_a_class_for_every_pixel() -> None:
    world = CloseUps(6, 3, SIZE)
    for place in range(3):
        named, masked = (world.source(task, "heldout")[place] for task in ("classes", "segmentation"))
        assert named.images[0].pil().tobytes() == masked.images[0].pil().tobytes()
        masks = masked.segments[1]
        assert masks.values.shape[1:] == (SIZE, SIZE) and (masks.values.sum(0) == 1).all()
        assert masks.labels == (named.text, "background") and masks.values[0].any()
    assert set(world.pixel_classes) == {*world.classes, "background"}


def test_the_head_for_pixels_finds_what_is_linear_in_the_tokens_each_in_its_tile() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(40, 4, 8)  # a grid of 2 x 2, tiles of 3 x 3 pixels
    truth = (tokens @ torch.randn(8, 9)).unflatten(1, (2, 2)).unflatten(3, (3, 3))  # [n, rows, columns, 3, 3]
    labels = (truth.transpose(2, 3).reshape(40, 6, 6) > 0).long()
    head = PixelHead.fitted(tokens, labels, 2)
    assert (head(tokens) == labels).float().mean() > 0.97
    assert torch.equal(head(tokens)[:, 3:, :3], head(tokens[:, [2, 2, 2, 2]])[:, :3, 3:])


@pytest.mark.light("token-transforming", "exact")
def test_nothing_of_the_tokens_is_lost_where_they_are_clusters_or_all_are_kept() -> None:
    torch.manual_seed(0)
    clusters, member = torch.randn(2, 5, 16), torch.randint(0, 5, (30,))
    member[:5] = torch.arange(5)
    x = clusters[:, member]
    for name, options in (("column", {"tau": 1e-4}), ("nearest", {})):
        assert unexplained(x, create(name, **options)(x, 5).tokens).max() < 1e-9
    assert unexplained(x, x).max() < 1e-9


@pytest.mark.light("token-transforming", "exact")
def test_what_pruning_keeps_is_told_whole_and_the_rest_is_what_the_kept_do_not_span() -> None:
    x, importance = torch.eye(6)[None].repeat(2, 1, 1), torch.rand(2, 6)
    found = create("prune")(x, 4, importance=importance)
    torch.testing.assert_close(unexplained(x, found.tokens), torch.full((2,), 2 / 6, dtype=torch.float64))
    assert unexplained(found.tokens, found.tokens).max() < 1e-12


def test_the_share_that_is_lost_is_that_of_the_first_block_that_reduces(tmp_path: Path) -> None:
    bench = Bench(SLUG, CloseUps(12, 6, SIZE), TINY, tmp_path)
    model = bench.model().eval()
    (met,) = meetings(model, bench.pictures)
    states = model.backbone(bench.pictures, output_hidden_states=True).hidden_states
    block = model.backbone.blocks[2]
    torch.testing.assert_close(met.x + block.mlp(block.norm2(met.x)), states[2])
    assert met.q.shape == (6, 4, 65, 32) and met.grid == (8, 8)
    assert lost(create("prune"), 1.0, met).max() < 1e-9
    shares = [lost(create("random"), keep, met) for keep in SMALL_KEEPS]
    assert (shares[0] > shares[1]).all() and (shares[1] > shares[2]).all()  # the same places and more


def test_the_divergence_by_hand() -> None:
    full, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[np.log(3.0), 0.0]])
    wanted = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert divergence(full, other).item() == pytest.approx(wanted)
