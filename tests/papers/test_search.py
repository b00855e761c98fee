"""`tessera papers --search`: by words, by what words mean, and in spite of spelling."""

from __future__ import annotations

import pytest

from tessera.papers.search import CONCEPTS, search, stems


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("token compression", {"fourier-vlm", "token-transforming"}),
        ("fewer visual tokens", {"fourier-vlm", "token-transforming"}),
        ("robots", {"gr-1", "f1-vla"}),
        ("chest x-ray", {"llm-cxr", "m3ae", "kg-llava"}),
        ("how to train with few labelled pictures", {"gmml", "sit"}),
        ("masked autoencoder", {"m3ae", "sit"}),
        ("prompt tuning of CLIP", {"maple"}),
        ("no vision encoder", {"eve", "solo"}),
        ("video question answering", {"valley", "pllava"}),
        ("refuse to edit", {"atvc"}),
        ("lxmert", {"lxmert"}),
    ],
)
def test_what_a_query_is_about_comes_first(text: str, first: set[str]) -> None:
    found = [one.slug for one in search(text)]
    assert set(found[: len(first)]) == first


def test_a_misspelt_word_finds_what_was_meant() -> None:
    assert [one.slug for one in search("fuorier")] == [one.slug for one in search("fourier")] == ["fourier-vlm"]


def test_order_of_words_tells_captioning_from_drawing() -> None:
    drawn, said = ({one.slug for one in search(text)} for text in ("text-to-image", "image-to-text"))
    assert "ganformer2" in drawn - said
    assert "mblip" in said - drawn


@pytest.mark.parametrize("text", ["qwertz", "the", "", "?!"])
def test_what_no_paper_is_about_finds_nothing(text: str) -> None:
    assert search(text) == []


def test_forms_of_a_word_have_one_stem() -> None:
    assert len({tuple(stems(word)) for word in ("compress", "compressing", "compressed", "compression")}) == 1
    assert stems("answering") == stems("answer") == stems("the answers")


def test_every_concept_has_two_different_terms_or_more() -> None:
    for row in CONCEPTS:
        assert len({tuple(stems(term)) for term in row}) >= 2, row
