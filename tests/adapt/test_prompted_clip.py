"""Prompts in a frozen CLIP: the limits in which they vanish, where they enter, what they move, what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerFast

from tessera.adapt.prompted_clip import PromptedCLIP, load_prompts, save_prompts
from tessera.adapt.prompts import METHODS, Prompts, Sizes, prompts_of
from tessera.errors import CheckpointError, UserError
from tessera.zoo.parts import load_tokenizer
from tests.adapt import maple_layout as layout
from tests.adapt.tiny_clip import LAYERS, tiny

CLASSES = ["red circle", "blue_star", "a small green cross"]
MAPLE = Prompts(text=2, text_depth=LAYERS, vision=2, vision_depth=LAYERS, coupling="each")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """That of the mini parts."""
    return load_tokenizer("mini/tokenizer")


@pytest.fixture(scope="module")
def clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """The one that most tests prompt."""
    return tiny(tokenizer)


@pytest.fixture
def make(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> Callable[..., PromptedCLIP]:
    """New prompts on it, the same ones each time."""

    def over(prompts: Prompts | str, classes: list[str] = CLASSES) -> PromptedCLIP:
        torch.manual_seed(1)
        model = PromptedCLIP.over(clip, tokenizer, classes, prompts)
        with torch.no_grad():
            for parameter in model.learner.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    return over


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Two of noise."""
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def plain_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The template's sentences as CLIP reads them."""
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in CLASSES]
    return tokenizer(texts, padding=True, return_tensors="pt").input_ids


@contextmanager
def inputs_of(layers: Any) -> Iterator[list[Tensor]]:
    """The states that each layer gets, prompts and all."""
    found: list[Tensor] = []
    handles = [layer.layer_norm1.register_forward_pre_hook(lambda _, given: found.append(given[0])) for layer in layers]
    yield found
    for handle in handles:
        handle.remove()


@pytest.mark.light("maple", "exact")
@pytest.mark.parametrize("number", [1, 2, 4])
def test_untrained_shallow_prompts_give_the_plain_clip_s_text_features_bit_for_bit(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, number: int
) -> None:
    model = PromptedCLIP.over(clip, tokenizer, CLASSES, Prompts(text=number, text_depth=1))
    plain = clip.get_text_features(plain_ids(tokenizer)).pooler_output
    assert torch.equal(model.text_features(), F.normalize(plain, dim=-1))


@pytest.mark.light("maple", "exact")
def test_without_prompts_the_logits_are_the_plain_clip_s(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, make: Callable[..., PromptedCLIP], pictures: Tensor
) -> None:
    plain = clip(input_ids=plain_ids(tokenizer), pixel_values=pictures).logits_per_image
    assert plain.std() > 0.1
    torch.testing.assert_close(make("zero-shot")(pictures).logits, plain, atol=1e-5, rtol=1e-6)


@pytest.mark.light("maple", "exact")
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("coupling", ["each", "shared", "none"])
def test_prompts_enter_as_the_paper_says(
    clip: CLIPModel, make: Callable[..., PromptedCLIP], pictures: Tensor, depth: int, coupling: Any
) -> None:
    """The towers written out by hand, layer by layer."""
    model = make(Prompts(text=2, text_depth=depth, vision=2, vision_depth=depth, coupling=coupling))
    learner, ids = model.learner, model.ids
    chosen = range(depth) if coupling == "each" else [0] * depth
    words, behind = list(learner.text), list(learner.vision)
    if coupling != "none":
        behind = [learner.projections[place](word) for place, word in zip(chosen, words, strict=True)]
    text, vision = clip.text_model, clip.vision_model
    states = text.embeddings.token_embedding(ids).clone()
    states[:, 1:3] = words[0]
    states = states + text.embeddings.position_embedding.weight[: ids.shape[1]]
    mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)[None, None]
    for place, layer in enumerate(text.encoder.layers):
        if 0 < place < depth:
            states = torch.cat([states[:, :1], words[place].expand(3, -1, -1), states[:, 3:]], dim=1)
        states = layer(states, mask)
    ends = (ids == clip.config.text_config.eos_token_id).int().argmax(1)
    texts = clip.text_projection(text.final_layer_norm(states)[torch.arange(3), ends])
    seen = torch.cat([vision.embeddings(pictures), behind[0].expand(2, -1, -1)], dim=1)
    seen = vision.pre_layrnorm(seen)
    for place, layer in enumerate(vision.encoder.layers):
        if 0 < place < depth:
            seen = torch.cat([seen[:, :-2], behind[place].expand(2, -1, -1)], dim=1)
        seen = layer(seen, None)
    images = clip.visual_projection(vision.post_layernorm(seen[:, 0]))
    cosines = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    wanted = clip.logit_scale.exp() * cosines
    torch.testing.assert_close(model(pictures).logits, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.light("maple", "exact")
def test_logits_are_those_of_the_official_code_on_the_same_weights(tokenizer: PreTrainedTokenizerFast) -> None:
    golden = json.loads((Path(__file__).parent / "maple_golden.json").read_text(encoding="utf-8"))
    clip = layout.clip(tokenizer)
    assert set(golden) == set(layout.PROMPTS)
    for name, wanted in golden.items():
        with torch.no_grad():
            found = layout.prompted(clip, tokenizer, name)(layout.pictures()).logits
        torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=0)


@pytest.mark.light("maple", "exact")
def test_the_vision_loss_reaches_text_prompts_through_the_projections_alone(
    make: Callable[..., PromptedCLIP], pictures: Tensor
) -> None:
    model = make(MAPLE)

    def reached() -> list[Tensor]:
        model.zero_grad()
        texts = model.text_features().detach()
        F.cross_entropy(model.image_features(pictures) @ texts.T, torch.tensor([0, 2])).backward()
        return [prompt.grad.clone() for prompt in model.learner.text]

    assert all(gradient.abs().max() > 1e-6 for gradient in reached())
    with torch.no_grad():
        for parameter in model.learner.projections.parameters():
            parameter.zero_()
    assert not any(gradient.any() for gradient in reached())


@pytest.mark.light("maple", "exact")
def test_independent_prompts_are_what_is_left_when_projections_are_replaced_by_what_they_give(
    make: Callable[..., PromptedCLIP], pictures: Tensor
) -> None:
    coupled, free = make(MAPLE), make("ivlp")
    with torch.no_grad():
        for mine, theirs in zip(free.learner.text, coupled.learner.text, strict=True):
            mine.copy_(theirs)
        for mine, given in zip(free.learner.vision, coupled.learner.vision_prompts(), strict=True):
            mine.copy_(given[0])
    torch.testing.assert_close(free(pictures).logits, coupled(pictures).logits)


@pytest.mark.light("maple", "exact")
@pytest.mark.parametrize("changed", range(LAYERS))
def test_a_deep_prompt_changes_its_layer_s_input_and_none_before(
    clip: CLIPModel, make: Callable[..., PromptedCLIP], pictures: Tensor, changed: int
) -> None:
    model = make(MAPLE)
    with inputs_of(clip.text_model.encoder.layers) as words, inputs_of(clip.vision_model.encoder.layers) as patches:
        model(pictures)
        with torch.no_grad():
            model.learner.text[changed].add_(1)
        model(pictures)
    for states in (words, patches):
        before, after = states[:LAYERS], states[LAYERS:]
        same = [torch.equal(*both) for both in zip(before, after, strict=True)]
        assert same == [place < changed for place in range(LAYERS)]
    for place in range(1, LAYERS):  # what the layer before made of its prompts is thrown away
        assert torch.equal(words[place][:, 1:3], make(MAPLE).learner.text[place].expand(3, -1, -1))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "zero-shot"])
def test_only_prompts_take_a_gradient_and_every_one_of_them(
    clip: CLIPModel, make: Callable[..., PromptedCLIP], pictures: Tensor, method: str
) -> None:
    model = make(method)
    assert all(name.startswith("learner.") == one.requires_grad for name, one in model.named_parameters())
    F.cross_entropy(model(pictures).logits, torch.tensor([0, 2])).backward()
    assert all(one.grad is None for one in clip.parameters())
    assert all(one.grad is not None and one.grad.any() for one in model.learner.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in clip.modules())


def test_hooks_are_gone_after_an_error_too(clip: CLIPModel, make: Callable[..., PromptedCLIP]) -> None:
    with pytest.raises(ValueError, match="doesn't match model"):
        make(MAPLE)(torch.zeros(1, 3, 9, 9))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in clip.modules())


@pytest.mark.parametrize("method", ["maple", "cocoop"])
def test_logits_follow_the_order_of_class_names_and_a_picture_s_do_not_depend_on_its_neighbours(
    make: Callable[..., PromptedCLIP], pictures: Tensor, method: str
) -> None:
    model = make(method)
    logits = model(pictures).logits
    torch.testing.assert_close(model.renamed(CLASSES[::-1])(pictures).logits, logits.flip(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(pictures[1:]).logits, logits[1:], atol=1e-5, rtol=1e-5)


def test_sixteen_prompts_stand_before_the_name_and_its_full_stop_alone(
    make: Callable[..., PromptedCLIP], tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = make("coop").ids
    for row, name in zip(ids, CLASSES, strict=True):
        start, *rest = tokenizer(name.replace("_", " ") + ".").input_ids
        assert row[0] == start and row[17 : 17 + len(rest)].tolist() == rest


def test_published_depths_are_cut_to_the_layers_that_there_are(clip: CLIPModel) -> None:
    sizes = Sizes.of(clip.config)
    assert (prompts_of("vpt", sizes).vision_depth, prompts_of("coop", sizes).text_depth) == (3, 1)
    assert prompts_of("maple", sizes) == MAPLE
    shallower = {**asdict(sizes), "text_layers": 2}
    assert prompts_of("maple", Sizes(**shallower)).vision_depth == 2


@pytest.mark.light("maple", "use")
def test_saved_prompts_are_small_and_load_onto_another_clip_of_that_size_with_other_classes(
    make: Callable[..., PromptedCLIP], tokenizer: PreTrainedTokenizerFast, pictures: Tensor, tmp_path: Path
) -> None:
    model, file = make(MAPLE), tmp_path / "prompts.safetensors"
    save_prompts(model, file)
    assert {name: tuple(value.shape) for name, value in load_file(file).items()} == {
        name: tuple(value.shape) for name, value in model.learner.named_parameters()
    }
    again = load_prompts(file, model.clip, tokenizer)
    assert again.classes == tuple(CLASSES) and torch.equal(again(pictures).logits, model(pictures).logits)
    other = load_prompts(file, tiny(tokenizer).float(), tokenizer, ["lynx", "owl"])
    assert torch.equal(other(pictures).logits, model.renamed(["lynx", "owl"])(pictures).logits)


def test_what_is_no_file_of_fitting_prompts_is_refused_by_a_sentence(
    clip: CLIPModel, make: Callable[..., PromptedCLIP], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.safetensors"
    save_prompts(make(MAPLE), file)
    wider = tiny(tokenizer, vision_width=32)
    with pytest.raises(CheckpointError, match="a CLIP of another size: vision width 24, here 32; load them onto"):
        load_prompts(file, wider, tokenizer)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    torch.save({"x": torch.zeros(1)}, tmp_path / "pickle.pt")
    for name, sentence in (
        ("other.safetensors", "holds no learned prompts"),
        ("pickle.pt", "is a pickle"),
        ("none.safetensors", "is missing"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            load_prompts(tmp_path / name, clip, tokenizer)


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["owl", "a </s> b"], "cannot read the class name 'a </s> b': '</s>' in it is not of its vocabulary"),
        (["owl", " _ "], "cannot read the class name ' _ ': it is empty"),
        (["owl", "owl"], "classes need different names"),
        ([], "classes need different names"),
        (["owl", "owl " * 40], "1 class names with their prompts are longer than the 24 positions"),
    ],
)
def test_class_names_that_cannot_be_read_are_named(
    make: Callable[..., PromptedCLIP], classes: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        make(MAPLE, classes)


@pytest.mark.parametrize("mark", ["<unk>", None])
def test_letters_that_a_vocabulary_lacks_are_named(clip: CLIPModel, mark: str | None) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {piece: place for place, piece in enumerate(["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz.", "<unk>"])}
    words = Tokenizer(models.BPE(letters, [], unk_token=mark))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token=mark)
    assert PromptedCLIP.over(clip, tokenizer, ["naive owl"]).ids.shape[0] == 1
    with pytest.raises(UserError, match="class name 'naïve owl': 'naïve' in it is not of its vocabulary"):
        PromptedCLIP.over(clip, tokenizer, ["naïve owl"])


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ("mapel", "no prompt method 'mapel'; did you mean 'maple'"),
        (Prompts(text=1, text_depth=9), "prompts in 9 layers do not fit the 3 of this CLIP's text tower"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(
    make: Callable[..., PromptedCLIP], prompts: Prompts | str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        make(prompts)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"text": 2}, "2 text prompts in 0 layers make no sense"),
        ({"text": 2, "text_depth": 2, "coupling": "each"}, "coupled prompts are as many, and as deep, in both towers"),
        ({"coupling": "eech"}, "cannot be coupled by 'eech'; did you mean 'each'"),
        ({"text": 2, "text_depth": 2, "conditional": True}, "conditional prompts are those of the words alone"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Prompts(**fields)
