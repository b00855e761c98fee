"""The emoji world: what it holds, that it repeats itself, and that no variant crosses the split."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from tessera.data.source import Source, World
from tessera.data.worlds.emoji import EmojiWorld, _joined, family, words
from tessera.data.worlds.emoji_font import find_font
from tessera.errors import UserError

try:
    FONT: Path | None = find_font()
except UserError:
    FONT = None
needs_font = pytest.mark.skipif(FONT is None, reason="no colour emoji font on this machine")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> EmojiWorld:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        made = EmojiWorld()
        assert made.emoji
    return made


def test_variants_of_one_emoji_share_a_family() -> None:
    thumb = "\U0001f44d"
    assert family(thumb + "\U0001f3fd") == thumb
    astronauts = {family(who + "\u200d\U0001f680") for who in ("\U0001f468", "\U0001f469\U0001f3ff", "\U0001f9d1")}
    assert len(astronauts) == 1
    runner = "\U0001f3c3"
    assert family(runner + "\U0001f3fb\u200d\u2642\ufe0f\u200d\u27a1\ufe0f") == runner
    couple = "\U0001f469\U0001f3fb\u200d\u2764\ufe0f\u200d\U0001f468\U0001f3ff"
    assert family(couple) == family("\U0001f491")
    assert family("\U0001f600") != family("\U0001f603")


def test_two_bases_that_share_a_picture_are_one_family() -> None:
    joined = _joined({"a": "p1", "b": "p2", "c": "p1", "d": "p2", "e": "p3"})
    assert joined["a"] == joined["c"] != joined["b"] == joined["d"] != joined["e"]


def test_names_become_words() -> None:
    assert words(":thumbs_up_medium_skin_tone:") == "thumbs up medium skin tone"


def test_a_missing_font_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESSERA_EMOJI_FONT", raising=False)
    monkeypatch.setattr("tessera.data.worlds.emoji_font.FONTS", ())
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError, match="apt-get install fonts-noto-color-emoji"):
        EmojiWorld()
    with pytest.raises(UserError, match="'/no/such.ttf' is not a file"):
        EmojiWorld("/no/such.ttf")


def test_a_file_that_is_no_font_is_refused(tmp_path: Path) -> None:
    fake = tmp_path / "fake.ttf"
    fake.write_bytes(b"not a font")
    with pytest.raises(UserError, match="cannot be drawn"):
        _ = EmojiWorld(fake).emoji


@needs_font
def test_an_unknown_language_or_task_names_the_nearest(world: EmojiWorld) -> None:
    with pytest.raises(UserError, match="did you mean 'pairs'"):
        world.source("pair")
    with pytest.raises(UserError, match="no language 'xx'"):
        EmojiWorld(languages=("xx",))


@needs_font
def test_the_world_keeps_the_protocol_and_holds_most_emoji(world: EmojiWorld) -> None:
    assert isinstance(world, World)
    assert isinstance(world.source("pairs"), Source)
    if world.font.shapes_sequences:
        assert len(world.emoji) > 3000
    assert {one.group for one in world.emoji} >= {"Smileys & Emotion", "Animals & Nature", "Food & Drink"}


@needs_font
def test_no_family_and_no_picture_crosses_the_split(world: EmojiWorld) -> None:
    train, heldout = world.split("train"), world.split("heldout")
    assert len(train) + len(heldout) == len(world.emoji)
    assert 0.05 < len({one.base for one in heldout}) / len({one.base for one in world.emoji}) < 0.15
    assert not {one.base for one in train} & {one.base for one in heldout}
    pictures = world._pictures
    assert not {pictures[one.sequence] for one in train} & {pictures[one.sequence] for one in heldout}


@needs_font
def test_samples_repeat_bit_for_bit_in_another_process_image(world: EmojiWorld) -> None:
    source = world.source("pairs")
    again = pickle.loads(pickle.dumps(EmojiWorld())).source("pairs")
    assert source.fingerprint() == again.fingerprint()
    assert len(source) == len(again)
    for index in range(0, len(source), len(source) // 7):
        one, other = source[index], again[index]
        assert (one.id, one.text) == (other.id, other.text)
        assert np.array_equal(np.asarray(one.images[0].pil()), np.asarray(other.images[0].pil()))


@needs_font
def test_pictures_have_the_size_a_margin_and_something_on_them(world: EmojiWorld) -> None:
    source = world.source("pairs", "heldout")
    for index in range(0, len(source), 40):
        pixels = np.asarray(source[index].images[0].pil())
        assert pixels.shape == (64, 64, 3)
        ground = pixels[0, 0]
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == ground).all()
        assert (np.abs(pixels.astype(int) - ground).max(axis=2) > 24).mean() > 0.03


@needs_font
def test_views_of_one_emoji_differ_and_have_keys_of_their_own(world: EmojiWorld) -> None:
    source = world.source("pairs")
    samples = [source[index] for index in range(world.views)]
    assert len({sample.meta["emoji"] for sample in samples}) == 1
    assert len({sample.images[0].key for sample in samples}) == world.views
    assert len({hashlib.sha256(sample.images[0].pil().tobytes()).digest() for sample in samples}) == world.views


@needs_font
def test_names_come_in_the_languages_asked_for(world: EmojiWorld) -> None:
    both = EmojiWorld(languages=("en", "fr"), views=1)
    both.__dict__["_pictures"] = {"\U0001f600": "x", "\U0001f1eb\U0001f1f7": "y"}
    answers = {
        (sample.meta["language"], sample.segments[1].text, sample.segments[2].text)
        for split in ("train", "heldout")
        for sample in both.source("names", split)
    }
    assert ("en", "What is this in English?", "grinning face") in answers
    assert ("fr", "What is this in French?", "visage rieur") in answers
    assert ("en", "What is this in English?", "flag of France") in answers
    assert both.fingerprint() != world.fingerprint()


@needs_font
def test_a_read_only_cache_is_no_error(world: EmojiWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert set(world.font.index(["\U0001f600", "\U0001f6d1"])) == {"\U0001f600", "\U0001f6d1"}
