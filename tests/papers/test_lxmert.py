"""LXMERT through the command line on worlds, own pictures and published files; and what its data streams give. A few
steps teach nothing, so no score is checked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL
from tokenizers import Tokenizer, models
from transformers import LxmertForPreTraining, PreTrainedTokenizerFast

import tessera
from tessera.answerer import Answerer
from tessera.cli import main
from tessera.data.answers import AnswerTable
from tessera.data.mixture import Mixture
from tessera.data.readers.detections import Detections
from tessera.data.sample import Image, Sample, pair, question
from tessera.data.sentences import Sentences
from tessera.data.worlds.scenes.draw import draw
from tessera.data.worlds.scenes.graph import random_scene
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import BadSample, UserError
from tessera.models.fusion import FusionForPairs
from tessera.papers.lxmert import LXMERT
from tessera.papers.lxmert_data import Batch, Found, Streams, grounded
from tessera.papers.lxmert_material import Material, with_mask
from tests.data.test_regions import detected, line
from tests.models.fusion_tiny import tiny_theirs

SMALL = {
    "model.hidden_size": 32, "model.num_attention_heads": 2, "model.intermediate_size": 64, "model.l_layers": 1,
    "model.r_layers": 1, "model.x_layers": 1, "pretrain.batch": 4, "answering.batch": 4, "finetune.batch": 4,
}  # fmt: skip


def train(out: Path, *words: str, **settings: Any) -> list[str]:
    """A command line of three steps."""
    given = [word for name, value in {**SMALL, **settings}.items() for word in ("--set", f"{name}={value}")]
    return ["train", "lxmert", "--out", str(out), "--steps", "3", *given, *words]


def picture(seed: int) -> PIL.Image:
    return PIL.fromarray(draw(random_scene(np.random.default_rng(seed))))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training on a folder of five captioned pictures, and the scenes, writes."""
    folder = tmp_path_factory.mktemp("lxmert")
    (folder / "mine").mkdir()
    for seed in range(5):
        picture(seed).save(folder / "mine" / f"{seed}.png")
        (folder / "mine" / f"{seed}.txt").write_text(f"picture number {seed}")
    assert main(train(folder / "run", "--data", str(folder / "mine"))) == 0
    return folder / "run" / "model"


@pytest.mark.light("lxmert", "use")
def test_own_pictures_train_it_and_a_fresh_process_answers(trained: Path, tmp_path: Path) -> None:
    picture(9).save(tmp_path / "new.png")
    command = [sys.executable, "-m", "tessera"]
    asked = [*command, "ask", str(tmp_path / "new.png"), "is there a star?", "--json", "--model", str(trained)]
    said = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert said[0]["question"] == "is there a star?"
    model = tessera.load(trained)
    assert isinstance(model, Answerer) and said[0]["answer"] in model.answers
    assert model.answer(picture(9), "is there a star?") == said[0]["answer"]


@pytest.mark.light("lxmert", "use")
def test_pictures_have_vectors_and_a_batch_gives_those_of_each_alone(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    model = tessera.load(trained)
    pictures = [picture(seed) for seed in range(4)]
    together = model.embed(pictures)
    alone = np.concatenate([model.embed([one]) for one in pictures])
    assert together.shape == (4, 32) and np.allclose(together, alone, atol=1e-5)
    asked = ["what color is it?", "how many objects are there?", "is there a circle?", "where is the star?"]
    assert model.answer(pictures, asked) == [model.answer(*one) for one in zip(pictures, asked, strict=True)]
    pictures[0].save(tmp_path / "a.png")
    assert main(["embed", str(tmp_path / "a.png"), "--model", str(trained)]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["vector"]) == 32


def test_what_an_answerer_cannot_do_is_one_sentence(trained: Path) -> None:
    model = tessera.load(trained)
    with pytest.raises(UserError, match="2 pictures and 3 questions; give one question for each picture"):
        model.answer([picture(0), picture(1)], ["a?", "b?", "c?"])
    with pytest.raises(UserError, match="a str is a text, give a Path instead"):
        model.embed(["a star"])
    assert model.embed([]).shape == (0, 32) and model.answer([], []) == []


def test_saving_and_loading_gives_the_same_scores(trained: Path, tmp_path: Path) -> None:
    model = tessera.load(trained)
    model.save(tmp_path / "again")
    regions = [model.look(picture(seed)) for seed in range(2)]
    asked = ["is there a star?", "what is left of the circle?"]
    assert torch.equal(model.scores(regions, asked), tessera.load(tmp_path / "again").scores(regions, asked))


def test_a_trained_model_is_a_start_and_keeps_the_answers_that_it_knows(trained: Path, tmp_path: Path) -> None:
    words = [f"--set={name}={value}" for name, value in SMALL.items() if name.startswith("finetune")]
    line = ["train", "lxmert", "--out", str(tmp_path / "run"), "--steps", "4", "--parts", f"model={trained}", *words]
    assert main(line) == 0
    stages = {json.loads(one)["stage"] for one in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"finetune"}
    older, newer = tessera.load(trained), tessera.load(tmp_path / "run" / "model")
    table = AnswerTable(("nonsense", *older.answers[:3]))
    assert Material.places(table, older.model.config) == [None, 0, 1, 2]
    assert len(set(newer.answers) & set(older.answers)) > 60  # what is rare may not be counted


def bert_tokenizer(folder: Path) -> Path:
    """A tokenizer with BERT's marks and few words."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "is",
        "it",
        "red",
        "a",
        "dog",
        "yes",
        "both",
        "are",
        "?",
        ".",
    ]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer.pre_tokenizer = Whitespace()
    marks = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the published files: eight pictures with 36 regions of width 2048, captions and questions."""
    folder = tmp_path_factory.mktemp("published")
    names = [f"COCO_{number}" for number in range(8)]
    (folder / "train2014_obj36.tsv").write_bytes(
        b"".join(line(name, detected(seed=seed)) for seed, name in enumerate(names))
    )
    rows = [
        {
            "img_id": name, "sentf": {"mscoco": ["a red dog ."], "vqa": ["is it red ?", "is it a dog ?"]},
            "labelf": {"vqa": [{"yes": 1.0, "no": 0.3}, {"no": 0.9}]},
        } for name in names
    ]  # fmt: skip
    (folder / "mscoco_train.json").write_text(json.dumps(rows))
    (folder / "all_ans.json").write_text(json.dumps([{"ans": "no"}, {"ans": "yes"}, {"ans": "maybe"}]))
    bert_tokenizer(folder / "bert")
    return folder


@pytest.mark.light("lxmert", "use")
def test_the_published_size_reads_the_published_files_and_answers_from_regions(published: Path, tmp_path: Path) -> None:
    words = ["--size", "published", "--data", str(published), "--parts", f"tokenizer={published / 'bert'}"]
    assert main(train(tmp_path / "run", *words)) == 0
    model = tessera.load(tmp_path / "run" / "model")
    assert model.encoder is None and model.answers == ("no", "yes", "maybe")
    assert (model.model.config.visual_feat_dim, model.model.config.num_object_labels) == (2048, 1600)
    regions = Detections(published / "train2014_obj36.tsv")["COCO_3"]
    (said,) = model.answer_regions([regions], ["is it red ?"])
    assert said in model.answers
    picture(1).save(tmp_path / "a.png")
    assert main(["ask", str(tmp_path / "a.png"), "is it red ?", "--model", str(tmp_path / "run" / "model")]) == 2


@pytest.mark.light("lxmert", "weights")
def test_a_folder_of_transformers_is_fine_tuned_on_published_files(published: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = LxmertForPreTraining(tiny_theirs(vocab_size=15, visual_feat_dim=2048))
    theirs.save_pretrained(tmp_path / "theirs")
    bert_tokenizer(tmp_path / "theirs")
    words = ["--size", "published", "--data", str(published), "--parts", f"model={tmp_path / 'theirs'}"]
    line = ["train", "lxmert", "--out", str(tmp_path / "run"), "--steps", "9", *words, "--set", "finetune.lr=0.0"]
    assert main([*line, "--set", "finetune.batch=4"]) == 0
    model = tessera.load(tmp_path / "run" / "model").model
    for name, value in theirs.lxmert.state_dict().items():
        assert torch.equal(model.lxmert.state_dict()[name], value), name


@pytest.mark.light("lxmert", "use")
def test_statements_about_two_pictures_are_learned_from_published_files(published: Path, tmp_path: Path) -> None:
    rows = [
        {
            "identifier": f"train-{n}-0",
            "img0": f"COCO_{n}",
            "img1": f"COCO_{n + 1}",
            "label": n % 2,
            "sent": "both are red",
        }
        for n in range(7)
    ]
    folder = tmp_path / "nlvr2"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "captions.json").write_text((published / "mscoco_train.json").read_text())
    data = ["--data", str(folder), str(published / "train2014_obj36.tsv")]
    words = ["--size", "published", *data, "--parts", f"tokenizer={published / 'bert'}"]
    assert main(train(tmp_path / "run", *words, task="statements")) == 0
    model = FusionForPairs.from_pretrained(tmp_path / "run" / "model")
    assert model.config.visual_feat_dim == 2048


REFUSED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "unknown part": (lambda p: ["--parts", "eyes=x"], "no part 'eyes'"),
    "no tokenizer": (lambda p: ["--size", "published", "--data", str(p)], "needs BERT's tokenizer"),
    "no sentences": (lambda p: ["--data", str(p / "train2014_obj36.tsv")], "no folder has a .json file of sentences"),
    "pictures": (lambda p: ["--set", "task=statements"], "learned from files of features"),
    "decided": (lambda p: ["--set", "model.num_qa_labels=3"], "there is no setting 'model.num_qa_labels'"),
    "no statements": (
        lambda p: ["--data", str(p), "--set", "task=statements"],
        "the data hold no statements, which this training reads; they hold pairs, questions",
    ),
    "heads": (lambda p: ["--set", "model.hidden_size=33"], "hidden_size 33 does not divide"),
    "batch": (lambda p: ["--set", "pretrain.accumulate=3"], "a batch of 4 does not divide into 3 parts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_sentence(case: str, published: Path, tmp_path: Path, capsys: Any) -> None:
    words, sentence = REFUSED[case]
    assert main(train(tmp_path / "run", *words(published))) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


def test_a_table_that_knows_no_answer_is_refused(published: Path, tmp_path: Path, capsys: Any) -> None:
    for name in ("mscoco_train.json", "train2014_obj36.tsv"):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    (tmp_path / "all_ans.json").write_text(json.dumps(["left", "right"]))
    assert main(train(tmp_path / "run", "--data", str(tmp_path))) == 2
    assert "the table of answers has none of" in capsys.readouterr().err


def test_a_start_of_another_width_is_refused(trained: Path, published: Path, tmp_path: Path, capsys: Any) -> None:
    given = ["--data", str(published), "--parts", f"model={trained}"]
    assert main(["train", "lxmert", "--out", str(tmp_path / "run"), "--steps", "3", *given]) == 2
    assert "has visual_feat_dim 192, the data and the tokenizer 2048" in capsys.readouterr().err


@pytest.mark.light("lxmert", "size")
def test_size_has_every_counted_figure() -> None:
    found, unshared = LXMERT().size(), LXMERT().size("unshared")
    assert found["parameters"]["total"] == 228_051_752 and found["parameters"]["backbone"] == 207_936_768
    assert unshared["parameters"]["total"] - found["parameters"]["total"] == 11_819_520
    assert found["tokens"] == {"words": 20, "regions": 36} and round(found["checkpoint MiB"]) == 870
    assert unshared["gmacs"] == pytest.approx(found["gmacs"])  # the same products, with other weights


@pytest.fixture(scope="module")
def streams() -> Streams:
    return Streams(Sentences(with_mask("mini/tokenizer"), 24), AnswerTable(["yes", "no", "2"]), Found())


def test_the_regions_of_a_scene_are_known_and_those_of_other_pictures_stand_out(streams: Streams) -> None:
    world = ScenesWorld(train_pictures=3, heldout_pictures=1)
    sample = world.source("pairs")[1]
    known = streams.detector(sample, sample.images[0])
    assert len(known) == len(sample.meta["scene"].objects) and known.object_confidence.all()
    other = pair(Image(np.asarray(sample.images[0].pil()), key="another name"), "words")
    seen = streams.detector(other, other.images[0])
    assert not seen.object_confidence.any() and len(seen) >= 1


def test_half_of_the_sentences_are_another_picture_s_and_then_have_no_answer(streams: Streams) -> None:
    source = ScenesWorld(train_pictures=20, heldout_pictures=1).source("questions")
    mixture = Mixture([(source, 1.0)])
    samples = [(source[index], np.random.default_rng([3, index])) for index in range(60)]
    read = [(sample, streams.hidden(sample, mixture, rng)) for sample, rng in samples]
    matched = [item.fields["matched"] for _, item in read]
    assert 15 < sum(matched) < 45
    for sample, item in read:
        if item.fields["matched"]:
            place = streams.table.place(sample.meta["answer"])
            assert item.fields["answers"] == (-100 if place is None else place)
        else:
            assert item.fields["answers"] == -100


def test_what_is_asked_for_is_what_stood_there(streams: Streams) -> None:
    source = ScenesWorld(train_pictures=20, heldout_pictures=1).source("pairs")
    streams_of_own = Streams(streams.sentences, streams.table, streams.detector)
    mixture, asked = Mixture([(source, 1.0)]), 0
    for index in range(20):
        item = streams_of_own.hidden(source[index], mixture, np.random.default_rng([5, index]))
        if item.fields["matched"]:
            whole = streams.sentences.marked(streams.sentences.words(source[index].text))
            labels = item.fields["words"]
            assert labels[0] == labels[-1] == -100 and len(labels) == len(whole) <= 24
            there = labels != -100
            assert (labels[there] == whole[there]).all() and (item.ids[~there] == whole[~there]).all()
            asked += int(there.sum())
    assert asked > 10


def test_a_batch_is_the_same_for_any_number_of_processes(streams: Streams) -> None:
    parts = [(ScenesWorld(train_pictures=20, heldout_pictures=1).source("questions"), 1.0)]
    (whole,) = (next(iter(streams.pretraining(parts, 8))) for _ in range(1))
    halves: list[Batch] = [
        next(
            iter(
                Streams(streams.sentences, streams.table, streams.detector, rank=rank, world_size=2).pretraining(
                    parts, 8
                )
            )
        )
        for rank in range(2)
    ]
    assert whole.sample_ids == [
        one for pair_ in zip(*(half.sample_ids for half in halves), strict=True) for one in pair_
    ]
    assert torch.equal(whole.matched[::2], halves[0].matched)


def test_answers_and_sentences_come_from_wherever_a_sample_has_them(streams: Streams) -> None:
    image = Image(np.zeros((8, 8, 3), np.uint8), key="k")
    assert grounded(pair(image, "a dog")).scores == {}
    assert grounded(question(image, "is it?", "yes")).scores == {"yes": 1.0}
    several = question(image, "is it?", "yes", meta={"answers": {"Yes": 0.3, "no": 1.0}})
    assert streams.asked(several).fields["scores"].tolist() == pytest.approx([0.3, 1.0, 0.0])
    told = question(image, "Is this true? They are.", "true", meta={"sentence": "They are."})
    assert grounded(told).sentence == "They are."
    assert not streams.asked(question(image, "which color?", "blue")).fields["scores"].any()
    with pytest.raises(BadSample, match="no sentence about a picture"):
        grounded(Sample((image,)))
    with pytest.raises(BadSample, match="about two pictures, this one about 1"):
        streams.stated(several)
    alone = Mixture([(ScenesWorld(train_pictures=1, heldout_pictures=1).source("pairs"), 1.0)])
    never = Streams(streams.sentences, streams.table, streams.detector, chances=type(streams.chances)(mismatched=1.0))
    with pytest.raises(BadSample, match="needs several pictures"):
        never.hidden(alone.sources[0][0], alone, np.random.default_rng(0))
