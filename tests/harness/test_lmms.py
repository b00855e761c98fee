"""The model that lmms-eval finds, driven by a stand-in with the parts of lmms-eval 0.7.2 that it touches.

lmms-eval itself is not among the requirements: it needs torchvision and decord.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import tessera
from tessera.errors import UserError
from tests.vision_chat_tiny import noise, vision_chat

ROOT = Path(__file__).parents[2]


class Hook:
    def __init__(self) -> None:
        self.kept: list[tuple[Any, ...]] = []

    def add_partial(self, *what: Any) -> None:
        self.kept.append(what)


class Lmms:
    """lmms_eval.api.model.lmms, as far as a model of type "chat" is driven."""

    is_simple = True

    def __init__(self) -> None:
        self.cache_hook, self.task_dict = Hook(), {}

    @classmethod
    def create_from_arg_string(cls, line: str, more: dict[str, Any]) -> Any:
        given = dict(pair.split("=", 1) for pair in line.split(","))
        return cls(**given, **{name: value for name, value in more.items() if value is not None})


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = ["lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Lmms  # type: ignore[attr-defined]
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest  # type: ignore[attr-defined]
    yield
    sys.modules.pop("tessera.harness.lmms_model", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("driven") / "model"
    vision_chat().save(place)
    return place


DOCS = [{"picture": noise(number), "question": f"which colour is {number}?"} for number in range(5)]


def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    shown = {"type": "image", "url": doc["picture"]}
    return [{"role": "user", "content": [shown, {"type": "text", "text": doc["question"]}]}]


def request(number: int, to_messages: Any = messages, **settings: Any) -> Any:
    return SimpleNamespace(args=("", to_messages, {"max_new_tokens": 6, **settings}, number, "small", "test"))


def _model(folder: Path) -> Any:
    """As lmms-eval comes by it: entry point, manifest, class, argument string."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["entry-points"]["lmms_eval.models"]["tessera"].partition(":")
    manifest = getattr(import_module(module), function)()
    assert manifest.model_id == "tessera" and manifest.simple_class_path is None
    module, _, name = manifest.chat_class_path.rpartition(".")
    kind = getattr(import_module(module), name)
    assert issubclass(kind, Lmms) and kind.is_simple is False
    more = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    model = kind.create_from_arg_string(f"pretrained={folder}", more)
    model.task_dict["small"] = {"test": DOCS}
    return model


@pytest.mark.usefixtures("harness")
def test_requests_of_a_task_are_answered_in_their_order_as_the_model_answers_them(folder: Path) -> None:
    model = _model(folder)
    order = [3, 0, 4, 1, 2]
    said = model.generate_until([request(number) for number in order])
    chat = tessera.load(folder)
    wanted = chat.answer([DOCS[n]["picture"] for n in order], [DOCS[n]["question"] for n in order], max_new_tokens=6)
    assert said == wanted and len(set(said)) > 1
    assert len(model.cache_hook.kept) == 5


@pytest.mark.usefixtures("harness")
def test_settings_of_a_request_are_its_own(folder: Path) -> None:
    model = _model(folder)
    whole, short = model.generate_until([request(0), request(0, max_new_tokens=2)])
    assert whole.startswith(short) and len(short) < len(whole)
    letter = whole[1]
    assert model.generate_until([request(0, until=[letter])]) == [whole.partition(letter)[0].strip()]
    assert model.generate_until([request(0, temperature=0, top_p=None, num_beams=1, do_sample=False)]) == [whole]


@pytest.mark.usefixtures("harness")
def test_what_it_cannot_do_is_refused_in_a_sentence(folder: Path) -> None:
    model = _model(folder)
    film = [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]
    with pytest.raises(UserError, match="the task shows video"):
        model.generate_until([request(0, lambda doc: film)])
    with pytest.raises(UserError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(UserError, match="one round"):
        model.generate_until_multi_round([])


@pytest.mark.usefixtures("harness")
def test_a_model_that_answers_one_question_about_one_picture_is_driven_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(pictures: list[Any], questions: list[str]) -> list[str]:
        return [f"{question} {picture.size[0]}" for picture, question in zip(pictures, questions, strict=True)]

    module = import_module("tessera.harness.lmms_model")
    used = SimpleNamespace(abilities=("ask",), answer=answer)
    monkeypatch.setattr(module, "load", lambda folder, device: used)
    model = module.TesseraModel("somewhere", device="cpu", batch_size="2")
    model.task_dict["small"] = {"test": DOCS}
    assert model.generate_until([request(1), request(0)]) == ["which colour is 1? 16", "which colour is 0? 16"]
    used.abilities = ("classify",)
    with pytest.raises(UserError, match="neither chats nor answers; it can classify"):
        module.TesseraModel("somewhere", device="cpu")
