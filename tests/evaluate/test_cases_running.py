"""A run: what a mode shows, what it never opens, the order of options, and how it goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tessera.data import images
from tessera.errors import BadSample, DataError, UserError
from tessera.evaluate.cases import CaseSet, Loaded, Plan, Reply, run, score
from tessera.evaluate.cases.prompting import MODES, Prompt, wrong_hint
from tessera.evaluate.cases.running import REPLIES, generator, order_of, prompt_of
from tests.evaluate.cases_made import OPTIONS, Says, case, cases, oracle, picture

ALL = Plan(modes=("text", "image", "both"))


@pytest.mark.light("medical-cases", "exact")
@pytest.mark.parametrize("style", ["plain", "reasoned", "formatted", "bare"])
def test_image_alone_has_no_word_of_the_question_and_text_alone_no_picture(style: str, tmp_path: Path) -> None:
    one = case(3, images=(picture(tmp_path),))
    for repeat in range(3):
        asked = {mode: prompt_of(one, mode, repeat, Plan(modes=(mode,), style=style)) for mode in MODES}
        assert not any(word in asked["image"].text for word in one.question.split())
        assert asked["text"].images == () and asked["image"].images == asked["both"].images == one.images
        for mode in ("text", "both", "note", "vignette"):
            assert one.question in asked[mode].text
        assert all(option in text.text for text in asked.values() for option in OPTIONS)
        if style != "bare":
            assert all("[['OPTION TEXT']]" in text.text for text in asked.values())


@pytest.mark.light("medical-cases", "exact")
def test_a_run_of_text_alone_opens_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cases(3, tmp_path)
    monkeypatch.setattr(images, "open_image", lambda *_, **__: pytest.fail("opened"))
    monkeypatch.setattr("tessera.evaluate.cases.running.open_image", lambda *_, **__: pytest.fail("opened"))
    asked = oracle(made)
    run(made, asked, Plan(modes=("text",)), tmp_path / "run")
    assert all(one.images == () for one in asked.prompts)


@pytest.mark.light("medical-cases", "exact")
def test_an_oracle_that_ignores_pictures_scores_the_same_with_and_without_them(tmp_path: Path) -> None:
    made = cases(15, tmp_path)
    found = score(made, run(made, oracle(made), ALL, tmp_path / "run"))
    assert found["modes"]["text"]["accuracy"] == found["modes"]["both"]["accuracy"]
    assert found["modes"]["text"]["accuracy"]["value"] == 1 > found["modes"]["image"]["accuracy"]["value"]
    same = next(one for one in found["between"] if one["modes"] == ["text", "both"])
    assert (same["p"], same["difference"]["value"]) == (1, 0)


@pytest.mark.light("medical-cases", "exact")
def test_guessing_lies_within_the_exact_interval_of_one_in_five(tmp_path: Path) -> None:
    made = cases(200)
    guesser = Says(lambda _, seed: f"[['{'ABCDE'[seed % 5]}']]", "guesser")
    found = score(made, run(made, guesser, Plan(modes=("text",), together=50), tmp_path))["modes"]["text"]
    assert found["accuracy"]["low"] <= 0.2 <= found["accuracy"]["high"]
    assert found["no response"]["value"] == 0


def test_options_stand_in_one_order_in_all_modes_and_in_others_in_other_repeats() -> None:
    one, plan = case(), Plan(repeats=20)
    orders = {order_of(one, repeat, plan) for repeat in range(20)}
    assert len(orders) > 10 and all(sorted(order) == list(range(5)) for order in orders)
    assert order_of(one, 3, plan) == order_of(one, 3, Plan(modes=("image",)))
    assert order_of(one, 3, plan) != order_of(one, 3, Plan(seed=1))
    assert order_of(one, 3, Plan(shuffle=False)) == (0, 1, 2, 3, 4)
    lines = prompt_of(one, "text", 3, plan).text.splitlines()
    listed = [line for line in lines if line[1:3] == ". "]
    assert listed == [f"{'ABCDE'[at]}. {OPTIONS[place]}" for at, place in enumerate(order_of(one, 3, plan))]


@pytest.mark.parametrize("mode", ["note", "vignette"])
def test_a_hint_names_a_wrong_option_and_never_the_right_one(mode: str) -> None:
    seen = set()
    for seed in range(40):
        hint = wrong_hint(case(2), mode, generator(seed))  # type: ignore[arg-type]
        named = [option for option in OPTIONS if option in hint]
        assert len(named) == 1 and named[0] != OPTIONS[2]
        assert hint.count(".") == (1 if mode == "note" else 5)
        seen |= set(named)
    assert len(seen) == 4
    same = [prompt_of(case(2), mode, repeat, Plan(modes=(mode,))).text for repeat in range(2)]  # type: ignore[arg-type]
    assert [option in same[0].split("Options")[0] for option in OPTIONS] == [
        option in same[1].split("Options")[0] for option in OPTIONS
    ]


class Stops(Says):
    """Fails after some prompts."""

    left = 7

    def answer(self, prompts: Sequence[Prompt], *, temperature: float, seeds: Sequence[int]) -> list[Reply]:
        self.left -= len(prompts)
        if self.left < 0:
            raise KeyboardInterrupt
        return super().answer(prompts, temperature=temperature, seeds=seeds)


@pytest.mark.light("medical-cases", "use")
def test_a_stopped_run_goes_on_where_it_was_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    made, say = cases(6), lambda asked, seed: f"{seed} {asked.text[-20:]}"
    plan = Plan(modes=("text",), repeats=2, together=3)
    whole = run(made, Says(say), plan, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(made, Stops(say), plan, tmp_path / "run")
    file = tmp_path / "run" / REPLIES
    file.write_bytes(file.read_bytes()[:-10])  # killed within a line
    rest = Says(say)
    found = run(made, rest, plan, tmp_path / "run")
    assert len(rest.prompts) == 12 - 5
    assert [(one.key, one.order, one.reply) for one in found] == [(one.key, one.order, one.reply) for one in whole]
    silent = Says(lambda *_: pytest.fail("asked again"))
    assert [one.reply for one in run(made, silent, plan, tmp_path / "run")] == [one.reply for one in whole]


def test_what_never_came_is_asked_for_again_and_more_modes_and_repeats_are_added(tmp_path: Path) -> None:
    class Half(Says):
        def answer(self, prompts: Sequence[Prompt], *, temperature: float, seeds: Sequence[int]) -> list[Reply]:
            found = super().answer(prompts, temperature=temperature, seeds=seeds)
            return [Reply(problem="cut", tries=4) if place % 2 else one for place, one in enumerate(found)]

    made = cases(4, tmp_path)
    first = run(made, Half(lambda *_: "A"), Plan(modes=("text",)), tmp_path / "run")
    assert [one.problem for one in first] == ["", "cut"] * 2
    again = Says(lambda *_: "B\u2028\ud800")  # a line break that JSON keeps, and half a pair that no file takes
    found = run(made, again, Plan(modes=("text", "image"), repeats=2), tmp_path / "run")
    assert len(found) == 16 and len(again.prompts) == 14
    assert not any(one.problem for one in found)
    assert len(run(made, again, Plan(modes=("text", "image"), repeats=2), tmp_path / "run")) == 16
    assert len(again.prompts) == 14


@pytest.mark.parametrize(
    ("plan", "name", "number"),
    [(Plan(seed=1), "says", 3), (Plan(style="formatted"), "says", 3), (Plan(), "other", 3), (Plan(), "says", 4)],
)
def test_replies_of_another_run_are_not_taken_up(plan: Plan, name: str, number: int, tmp_path: Path) -> None:
    run(cases(3, tmp_path), Says(lambda *_: "A"), Plan(), tmp_path / "run")
    before = (tmp_path / "run" / REPLIES).read_bytes()
    with pytest.raises(UserError, match="choose another --out"):
        run(cases(number, tmp_path), Says(lambda *_: "A", name), plan, tmp_path / "run")
    assert (tmp_path / "run" / REPLIES).read_bytes() == before


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / REPLIES).write_text('{"version": 1}\nnonsense\n', encoding="utf-8")
    with pytest.raises(DataError, match="is no record of replies"):
        run(cases(1), Says(lambda *_: "A"), Plan(modes=("text",)), tmp_path)


def test_a_picture_that_cannot_be_opened_costs_the_case_its_picture_alone(tmp_path: Path) -> None:
    made = cases(3, tmp_path)
    made.cases[1].images[0].write_bytes(b"no picture")
    found = run(made, oracle(made), ALL, tmp_path / "run")
    assert [one.key for one in found if one.case == "1"] == [("1", "text", 0)]
    assert len(found) == 7


@pytest.mark.parametrize(
    "wrong", [{"modes": ("texts",)}, {"modes": ()}, {"repeats": 0}, {"temperature": -1.0}, {"style": "plane"}]
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        Plan(**wrong)


def test_cases_without_what_a_mode_needs_are_not_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no case of made has what the modes image need"):
        run(cases(2), Says(lambda *_: "A"), Plan(modes=("image",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    made = CaseSet("made", (case(0, question="", images=(picture(tmp_path),)), case(1)))
    found = run(made, Says(lambda *_: "A"), ALL, tmp_path / "run")
    assert [one.key[:2] for one in found] == [("0", "image"), ("1", "text")]


class OnePicture:
    """As an answerer: questions about one picture."""

    def answer(self, pictures: list, questions: list[str]) -> list[str]:
        if any("zebra1 " in one for one in questions):
            raise BadSample("the question is too long")
        return [f"A {path.name}" for path in pictures]


def test_a_model_that_needs_a_picture_is_asked_about_pictures_and_says_so(tmp_path: Path) -> None:
    asked = Loaded(OnePicture(), "one")
    made = cases(3, tmp_path)
    found = run(made, asked, Plan(modes=("both",)), tmp_path / "run")
    assert [one.reply for one in found] == ["A 0.png", "", "A 2.png"]
    assert found[1].problem == "the question is too long"
    with pytest.raises(UserError, match="answers questions about one picture.*--modes image both"):
        run(made, asked, Plan(modes=("text",)), tmp_path / "text")
    with pytest.raises(UserError, match="draws no words"):
        run(made, asked, Plan(modes=("both",), temperature=1.0), tmp_path / "drawn")


def test_every_reply_is_one_line_with_its_order(tmp_path: Path) -> None:
    run(cases(2), Says(lambda *_: "two\nlines"), Plan(modes=("text",)), tmp_path)
    head, *rows = [json.loads(line) for line in (tmp_path / REPLIES).read_text(encoding="utf-8").splitlines()]
    assert head["model"] == "says" and head["plan"]["style"] == "plain"
    assert [(row["case"], row["reply"], len(row["order"])) for row in rows] == [
        ("0", "two\nlines", 5),
        ("1", "two\nlines", 5),
    ]
