"""Replies of every shape are read as the option that they choose, and as none where they choose none or two."""

from __future__ import annotations

import pytest

from tessera.evaluate.cases import parse
from tests.evaluate.cases_made import OPTIONS

REPLIES = {
    "[['Measles']]": "Measles",
    "It fits well. [['Pityriasis rosea']]": "Pityriasis rosea",
    '[["Kawasaki disease"]]': "Kawasaki disease",
    "[[''Rubella'']]": "Rubella",
    "[[Rubella]]": "Rubella",
    "[['B. Rubella']]": "Rubella",
    "[['B']]": "Rubella",
    "[[ ' hand, foot and mouth disease. ' ]]": "Hand, foot, and mouth disease",
    "Measles or rubella? [['Rubella']]": "Rubella",
    "The form is [['OPTION TEXT']], so: [['Measles']]": "Measles",
    "[['OPTION TEXT']] Measles": "Measles",
    "The rash suggests kawasaki disease, I think.": "Kawasaki disease",
    "HAND, FOOT AND MOUTH DISEASE": "Hand, foot, and mouth disease",
    "C": "Kawasaki disease",
    "(c)": "Kawasaki disease",
    "C. Measles": "Measles",
    "The answer is **D**.": "Hand, foot, and mouth disease",
    "Answer: B, because of the fever": "Rubella",
    "The answer is A because of the rash": None,
    "A rash like this is common.": None,
    "Measles or rubella.": None,
    "It is not measles but rubella.": None,
    "This is not measles.": None,
    "[['Measles', 'Rubella']]": None,
    "[['I cannot say']]": None,
    "I'm sorry, but I can't help with that.": None,
    "Option B or option C": None,
    "": None,
    "   \n": None,
}


@pytest.mark.light("medical-cases", "exact")
@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_is_read_as_specified(reply: str) -> None:
    found = parse(reply, OPTIONS)
    assert (None if found is None else OPTIONS[found]) == REPLIES[reply]


@pytest.mark.parametrize("first", OPTIONS)
@pytest.mark.parametrize("second", OPTIONS)
def test_two_options_outside_brackets_are_never_a_hit(first: str, second: str) -> None:
    place = parse(f"I hesitate between {first} and {second}.", OPTIONS)
    assert place == (OPTIONS.index(first) if first == second else None)


def test_an_option_within_a_longer_one_is_not_named_by_it() -> None:
    options = ("Measles", "German measles", "Mumps")
    assert parse("It is German measles.", options) == 1
    assert parse("It is measles.", options) == 0
    assert parse("It is German measles, or just measles.", options) is None


def test_options_that_punctuation_tells_apart_are_told_apart() -> None:
    options = ("C", "C++", "C#")
    assert [parse(f"[['{one}']]", options) for one in options[:1]] == [0]
    assert parse("It is written in C++", options) == 1


def test_letters_follow_the_order_in_which_options_were_shown() -> None:
    assert parse("B", OPTIONS[::-1]) == 1
    assert OPTIONS[::-1][1] == "Hand, foot, and mouth disease"
