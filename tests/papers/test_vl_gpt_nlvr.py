"""The NLVR study: what it judges, and that it runs through the command line. Two steps teach nothing, so no claim is
checked."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.cli import main
from tessera.data.readers.nlvr import Statements
from tessera.data.worlds import open_world
from tessera.evaluate.intervals import exact_binomial
from tessera.models.vlgpt.image_tokenizer import CausalTokenizerModel
from tessera.papers import vl_gpt_nlvr
from tessera.papers.vl_gpt import MINI, Run, tokenizer_config
from tessera.papers.vl_gpt_data import Streams
from tessera.papers.vl_gpt_nlvr import ARMS, Bench, Budget
from tessera.train.features import FeatureStore
from tessera.zoo.foundation import load_mini
from tessera.zoo.parts import quiet
from tests.data.tiny import write_nlvr

REAL = Path(os.environ.get("NLVR_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_real = pytest.mark.skipif(
    not (REAL / "nlvr-dev.tar").is_file(),
    reason="the NLVR shards are not here; NLVR_DATA names the folder of nlvr-dev.tar and nlvr-test.tar",
)
TINY = Budget(steps=2, rows=1, row_length=160, examples=6)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as NLVR is, with ten examples in two arrangements each."""
    folder = tmp_path_factory.mktemp("nlvr")
    for part in ("dev", "test"):
        write_nlvr(folder / f"nlvr-{part}.tar", 10)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a VL-GPT whose image tokenizer and language model were not trained together."""
    torch.manual_seed(0)  # two answers of random weights may be too close to compare
    with quiet():
        parts = load_mini()
    small = {**MINI.tokenizer, "width": 64, "depth": 1, "heads": 1, "mlp_width": 64}
    recipe = replace(MINI, tokenizer=small, model={}, told=0, drawn=0)  # nothing that is measured on pictures
    run = Run(parts, recipe, Streams([(open_world("scenes"), 1.0)], parts.tokenizer, 8))
    run.patches = FeatureStore(lambda images: images)  # type: ignore[arg-type, return-value]  # never asked
    run.model = run.join(CausalTokenizerModel(tokenizer_config(parts, recipe), parts.vision))
    folder = tmp_path_factory.mktemp("model") / "model"
    run.assistant().save(folder)
    return folder


def test_answers_of_a_batch_are_those_of_each_statement_alone(drawn: Path, model: Path, tmp_path: Path) -> None:
    bench = Bench(drawn, model, TINY, tmp_path)
    statements = bench.statements("test", "pictures")
    builder, tuned = bench.assistant.builder, bench.assistant.model
    words = [builder.encode(f" {answer}")[0] for answer in ("true", "false")]
    alone = []
    for sample in (statements[index] for index in range(6)):
        ids = torch.from_numpy(builder.prompt(sample.segments[:-1]).input_ids).long()
        with torch.no_grad():
            true, false = tuned(ids[None], image_embeds=bench.embeds(sample.images)).logits[0, -1, words].tolist()
        assert abs(true - false) > 1e-4
        alone.append(true > false)
    assert bench.answers(tuned, statements) == alone


@pytest.mark.parametrize("data", ["drawn", pytest.param("real", marks=needs_real)])
def test_the_study_runs_from_the_command_line_and_judges_against_the_majority(
    data: str, drawn: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = drawn if data == "drawn" else REAL
    monkeypatch.setitem(vl_gpt_nlvr.nlvr.__kwdefaults__, "budget", TINY)
    assert main(["reproduce", "vl-gpt", "--study", "nlvr", "--data", str(given), "--model", str(model)]) == 0
    result: dict[str, Any] = json.loads((tmp_path / "results" / "vl-gpt-nlvr.json").read_text())
    assert list(result["arms"]) == list(ARMS) and result["budget"]["equal"]
    truths = [bool(one.meta["label"]) for one in Statements(given / "nlvr-test.tar", once=True, examples=6)]
    majority, blank = result["claims"]
    assert majority["against"] == max(sum(truths), 6 - sum(truths)) / 6
    assert blank["against"] == "blank pictures"
    for name, arm in result["arms"].items():
        assert arm["steps"] == [2, 2, 2]
        found = [exact_binomial(round(6 * share), 6).to_json() for share in arm["metrics"]["accuracy"]["by_seed"]]
        assert result["accuracy_by_seed"][name] == found
    assert not list((tmp_path / "runs" / "studies" / "vl-gpt-nlvr" / "training").iterdir())


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--study nlvr", "name their folder with --data FOLDER"),
        ("--study nlvr --data {}", "nlvr-dev.tar"),
        ("--study nlvr --model {} --data {}", "holds no trained model for the study nlvr to tune"),
        ("--study nlrv", "has no study 'nlrv'; did you mean 'nlvr'?"),
        ("--data {}", "belong to a further study; name it with --study"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    line: str, sentence: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(model)] if "nlvr --data" in line else []
    given = line.replace("{}", str(tmp_path)).split()
    assert main(["reproduce", "vl-gpt", *given, *words, "--out", str(tmp_path / "x.json")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
