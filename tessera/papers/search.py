"""Papers by words or meaning, in plain Python: TF-IDF over word stems and over concepts, which are what the field has
several names for. Some fifty short texts need no more, and `tessera papers` starts at once."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from tessera.papers.registry import FAMILIES, Entry, papers

# One row, one concept: a short text that has the words of one of its terms, in their order, is about it.
CONCEPTS = (
    (
        "token compression",
        "token reduction",
        "token pruning",
        "token merging",
        "compress tokens",
        "reduce tokens",
        "fewer tokens",
    ),
    ("speed", "speed-up", "fast", "faster", "acceleration", "latency", "throughput", "efficient inference"),
    ("robot", "robotics", "vla", "vision-language-action", "manipulation", "embodied", "policy"),
    ("x-ray", "xray", "cxr", "radiograph", "radiology", "chest", "thoracic"),
    ("medical", "medicine", "clinical", "radiology", "doctor", "hospital", "diagnosis", "health"),
    ("vlm", "lvlm", "mllm", "vision-language model", "multimodal large language model"),
    ("llm", "language model"),
    ("vqa", "visual question answering", "question answering", "answer questions"),
    ("caption", "captioning", "image-to-text", "describe pictures"),
    ("text-to-image", "draw", "drawing", "image generation", "generate images", "image synthesis", "paint"),
    ("picture", "image", "photo", "photograph"),
    ("movie", "video", "clips", "temporal", "frames"),
    ("self-supervised", "unsupervised", "pretext task", "without labels", "unlabelled"),
    ("mim", "mae", "masked image modelling", "masked autoencoder", "inpainting"),
    ("few labels", "few labelled", "limited labels", "small data", "data-hungry"),
    ("backbone", "image encoder", "vision encoder", "vision transformer", "vit"),
    ("cnn", "convolution", "convolutional"),
    ("peft", "parameter-efficient", "lora", "adapter", "prompt tuning", "few parameters"),
    ("prompt learning", "prompt tuning", "soft prompt", "prompting"),
    (
        "model compression",
        "smaller model",
        "model smaller",
        "small model",
        "compress model",
        "shrink",
        "pruning",
        "quantization",
        "low-rank",
    ),
    ("quantization", "quantisation", "quantise", "quantize", "int8", "low precision"),
    ("image tokenizer", "visual tokenizer", "vector quantization", "vq", "vqgan", "codebook", "discrete tokens"),
    ("nas", "architecture search", "evolutionary search"),
    ("distillation", "distil", "distill", "teacher and student", "knowledge transfer"),
    ("gan", "adversarial"),
    ("hallucination", "language prior", "language bias", "making things up"),
    ("retrieval", "rag", "retrieval-augmented generation", "knowledge graph"),
    ("multilingual", "languages", "cross-lingual", "translation"),
    ("few-shot", "in-context learning", "demonstrations"),
    ("dense prediction", "segmentation", "depth", "detection"),
    ("encoder-free", "without a vision encoder", "no vision encoder", "raw patches", "raw pixels"),
    ("linear attention", "linear complexity", "performer", "retention", "recurrent"),
    ("contrastive", "clip", "alignment"),
    ("fourier", "dct", "frequency", "low-pass"),
    ("refuse", "refusal", "reject", "safety", "accountable"),
    ("edit", "editing", "image-to-image", "re-creation"),
    ("face", "faces", "facial", "emotion"),
    ("survey", "review", "overview"),
    ("benchmark", "evaluation", "evaluate", "test"),
    ("unpaired", "cycle consistency", "unaligned"),
    ("noisy", "noise", "web data", "robust"),
    ("video generation", "text-to-video", "generate video"),
    ("ocr", "documents", "charts", "high resolution"),
)
_ENDINGS = ("ations", "ation", "ings", "ing", "ions", "ion", "ers", "er", "ised", "ized", "ed", "es", "s", "e")
_EMPTY = {
    "a", "about", "an", "and", "are", "as", "at", "by", "can", "do", "for", "from", "get", "how", "i", "in", "is",
    "it", "its", "make", "makes", "my", "of", "on", "or", "that", "the", "this", "to", "up", "use", "using", "want",
    "what", "which", "with",
}  # fmt: skip
_FIELDS = {"title": 2.0, "summary": 2.0, "keywords": 2.0, "capabilities": 1.0, "families": 0.5}
_CONCEPT = 1.5  # weight of a concept beside a word
_SPELLING = 0.75  # likeness from which an unknown word is taken for a known one
_LEAST, _SHARE = 0.08, 0.4  # scores below these, absolute and of the best, are no answer

Weights = Mapping[str, float]


def stems(text: str) -> list[str]:
    """Words without endings: "Compressing the tokens" -> ["compress", "token"]."""
    return [_stem(word) for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in _EMPTY]


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return _stem(word.removesuffix(ending))  # "answering" ends as "answer" does
    return word


@lru_cache(maxsize=1)
def _concepts() -> list[tuple[str, list[list[str]]]]:
    """Each concept's name as a feature, and the words of its terms."""
    return [(f"={row[0]}", [stems(term) for term in row]) for row in CONCEPTS]


def _in_order(term: Sequence[str], words: Sequence[str]) -> bool:
    """Whether the words of `term` follow each other in `words`, others between them or not."""
    rest = iter(words)
    return all(word in rest for word in term)


def _features(words: Sequence[str]) -> Counter[str]:
    """The words of one short text, and the concepts that it is about."""
    found = Counter(words)
    found.update(name for name, terms in _concepts() if any(_in_order(term, words) for term in terms))
    return found


def _texts(one: Entry) -> list[tuple[float, str]]:
    """A paper's short texts with their weights."""
    families = [FAMILIES[letter] for letter in one.families]
    fields = {"title": [one.slug, *one.title.split(":")], "summary": re.split("[,;:]", one.summary),
              "keywords": one.keywords, "capabilities": one.capabilities, "families": families}  # fmt: skip
    return [(_FIELDS[name], text) for name, texts in fields.items() for text in texts]


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Rarity of each feature, and each paper's weights, of length one."""
    counts: dict[str, dict[str, float]] = {}
    for one in papers():
        whole = counts.setdefault(one.slug, {})
        for weight, text in _texts(one):
            for feature, count in _features(stems(text)).items():
                whole[feature] = whole.get(feature, 0.0) + weight * count
    spread = Counter(feature for whole in counts.values() for feature in whole)
    rarity = {feature: math.log(1 + len(counts) / number) for feature, number in spread.items()}
    weighed = {slug: {f: math.log1p(c) * rarity[f] for f, c in whole.items()} for slug, whole in counts.items()}
    return rarity, {slug: _unit(weights) for slug, weights in weighed.items()}


def _unit(weights: Weights) -> dict[str, float]:
    length = math.sqrt(sum(value * value for value in weights.values()))
    return {feature: value / length for feature, value in weights.items()} if length else {}


def _spelt(word: str, known: Mapping[str, float]) -> str:
    """`word`, or the one nearest to it where no paper has it."""
    if word in known:
        return word
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=_SPELLING)), word)


def search(text: str) -> list[Entry]:
    """The papers that `text` is about, the nearest first; none where nothing is near."""
    rarity, index = _index()
    rarest = max(rarity.values())  # what no paper has is the rarest
    asked = _features(stems(text)) | _features([_spelt(word, rarity) for word in stems(text)])
    weights = {"=": _CONCEPT}
    query = _unit({one: n * rarity.get(one, rarest) * weights.get(one[0], 1.0) for one, n in asked.items()})
    scores = {slug: sum(value * has.get(one, 0.0) for one, value in query.items()) for slug, has in index.items()}
    least = max(_LEAST, _SHARE * max(scores.values()))
    return sorted((one for one in papers() if scores[one.slug] >= least), key=lambda one: -scores[one.slug])
