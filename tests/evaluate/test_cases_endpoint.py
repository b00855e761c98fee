"""An OpenAI-compatible endpoint: what it is sent, and what becomes of silence, nonsense and refusals."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.data.images import open_image
from tessera.errors import UserError
from tessera.evaluate.cases import Endpoint, Plan, Reply, run, score
from tessera.evaluate.cases.endpoint import KEY
from tessera.evaluate.cases.prompting import Prompt
from tests.evaluate.cases_made import cases, picture
from tests.evaluate.chat_server import ChatServer, Fault, pictures_of, text_of

SECONDS = 0.3  # that a silent server is waited for


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(KEY, raising=False)


def asked(server: ChatServer, prompt: Prompt | None = None, **options) -> Reply:
    waited: list[float] = []
    endpoint = Endpoint(server.url, "tiny", **{"timeout": 20.0, "sleep": waited.append, **options})
    (found,) = endpoint.answer([prompt or Prompt("what?")], temperature=0.5, seeds=[7])
    assert waited == list(endpoint.waits[: found.tries - 1])
    return found


@pytest.mark.light("medical-cases", "use")
def test_what_is_sent_is_one_turn_with_the_picture_as_it_is(tmp_path: Path) -> None:
    shown = picture(tmp_path, 5)
    with ChatServer(lambda body: "[['Measles']]") as server:
        assert asked(server, Prompt("what?", (shown,))) == Reply("[['Measles']]")
        assert asked(server) == Reply("[['Measles']]")
        (address,) = pictures_of(server.bodies[0])
        head, _, data = address.partition(",")
        assert head == "data:image/png;base64"
        assert open_image(base64.b64decode(data)).tobytes() == open_image(shown).tobytes()
        for body in server.bodies:
            assert (body["model"], body["temperature"], body["seed"], text_of(body)) == ("tiny", 0.5, 7, "what?")
            assert len(body["messages"]) == 1
        assert pictures_of(server.bodies[1]) == []
        assert {one["path"] for one in server.headers} == {"/v1/chat/completions"}
        assert not any("Authorization" in one for one in server.headers)


def test_a_key_of_the_environment_is_sent_and_no_redirect_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    with ChatServer(lambda _: "A") as other, ChatServer(lambda _: Fault(307, b"", location=other.url)) as server:
        assert asked(server).problem == "the server answers 307"
        assert server.headers[0]["Authorization"] == "Bearer secret"
        assert other.bodies == []


NONSENSE = {
    "no JSON": b"<html>busy</html>",
    "no choice": b'{"choices": []}',
    "another shape": b"[1, 2]",
    "a number": b'{"choices": [{"message": {"content": 5}}]}',
    "nothing": b"",
    "nulls": b'{"choices": [{"message": {"content": null}}]}',
    "deep": b"[" * 200_000,
}


@pytest.mark.light("medical-cases", "use")
@pytest.mark.parametrize("raw", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_asked_for_again_and_then_recorded_as_no_response(raw: bytes) -> None:
    with ChatServer(lambda _: Fault(raw=raw)) as server:
        found = asked(server)
        assert (found.text, found.tries, len(server.bodies)) == ("", 4, 4)
        assert found.problem in ("what came is no reply of a chat", "the reply has no words")


@pytest.mark.light("medical-cases", "use")
def test_silence_is_asked_for_again_and_then_recorded_as_no_response() -> None:
    with ChatServer(lambda _: Fault(silent=True)) as server:
        found = asked(server, timeout=SECONDS, waits=(1.0,))
        assert found == Reply(problem=f"no reply within {SECONDS:g} s", tries=2)


def test_a_server_that_recovers_is_heard() -> None:
    said: Iterator[str | Fault] = iter([Fault(503, message="busy"), Fault(raw=b"?"), Fault(429), "[['B']]"])
    with ChatServer(lambda _: next(said)) as server:
        assert asked(server) == Reply("[['B']]", tries=4)


def test_a_refusal_of_one_prompt_is_recorded_at_once_with_its_reason() -> None:
    with ChatServer(lambda _: Fault(400, message="the picture breaks\nour rules")) as server:
        assert asked(server) == Reply(problem="the server answers 400: the picture breaks our rules")
    text = json.dumps({"choices": [{"message": {"content": None, "refusal": "I cannot help."}}]})
    with ChatServer(lambda _: Fault(raw=text.encode())) as server:
        assert asked(server) == Reply("I cannot help.")


@pytest.mark.parametrize(
    ("status", "sentence"), [(401, "the key in TESSERA_API_KEY"), (404, "no such address or model")]
)
def test_a_wrong_key_or_model_stops_the_run(status: int, sentence: str) -> None:
    with ChatServer(lambda _: Fault(status, message="no")) as server, pytest.raises(UserError, match=sentence):
        asked(server)


def test_an_address_at_which_nothing_answers_stops_the_run(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=r"nothing answers at .*start the server and run the same command again"):
        run(cases(1), Endpoint(url, "tiny"), Plan(modes=("text",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "127.0.0.1:8000", "http://", "ftp://x", "http://x:port", "http://[", "http://a b"]
)
def test_what_is_no_http_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="is no http address"):
        Endpoint(url, "tiny")


@pytest.mark.light("medical-cases", "use")
def test_a_run_over_an_endpoint_keeps_what_came_and_what_did_not(tmp_path: Path) -> None:
    """Every third case meets a server that is down or talks nonsense, whichever mode it is asked in."""
    made = cases(6, tmp_path)

    def reply(body: dict) -> str | Fault:
        if "zebra2" in text_of(body):
            return Fault(503, message="busy")
        return Fault(raw=b"?") if "zebra5" in text_of(body) else "[['Measles']]"

    with ChatServer(reply) as server:
        endpoint = Endpoint(server.url, "tiny", waits=(0.0,), sleep=lambda _: None)
        answered = run(made, endpoint, Plan(modes=("text", "both"), together=3), tmp_path / "run")
    found = score(made, answered)
    for mode in ("text", "both"):
        assert found["modes"][mode]["no response"]["value"] == pytest.approx(2 / 6)
        assert set(found["modes"][mode]["reasons"]) == {
            "the server answers 503: busy", "what came is no reply of a chat",
        }  # fmt: skip
        assert found["modes"][mode]["accuracy"]["value"] == pytest.approx(1 / 6)  # case 0; case 5 was never heard
    assert {one.tries for one in answered} == {1, 2}
