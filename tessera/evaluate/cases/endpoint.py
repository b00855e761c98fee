"""A model behind an address that speaks as OpenAI's chat completions do: a local server, or a provider.

What does not come in time, or is no reply, is asked for again, each time after a longer wait, and then recorded as no
response. The key, where there is one, is read from the environment variable TESSERA_API_KEY; it goes to this address
alone: redirects are not followed.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tessera.data.images import open_image
from tessera.errors import BadSample, UserError, reason
from tessera.evaluate.cases.prompting import Prompt
from tessera.evaluate.cases.respondents import Reply

KEY = "TESSERA_API_KEY"
LARGEST = 4 * 2**20  # bytes of a reply that are read
WAITS = (1.0, 4.0, 15.0)  # seconds before each further try
_WRONG = {401: f"the key in {KEY} is missing or wrong", 403: f"the key in {KEY} may not do this",
          404: "there is no such address or model", 405: "the address takes no questions"}  # fmt: skip
_LATER = (408, 409, 425, 429, 500, 502, 503, 504)


class _Nonsense(Exception):
    """A reply that is none, or comes too late: worth another try."""


class _Refused(Exception):
    """This prompt is not answered, and would not be the next time."""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """No other address."""


@dataclass
class Endpoint:
    """A model of an OpenAI-compatible server.

    Args:
        url: up to and without /chat/completions: "http://127.0.0.1:8000/v1".
        timeout: seconds that a reply may take.
        waits: seconds before each further try.
        length: tokens of a reply, at most.

    Raises:
        UserError: `url` is no http address.
    """

    url: str
    name: str
    timeout: float = 120.0
    waits: Sequence[float] = WAITS
    length: int = 1024
    sleep: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 80) > 0
        except ValueError:  # brackets that do not close, a port that is no number
            sound = False
        if not sound or any(letter.isspace() for letter in self.url):
            raise UserError(f"--endpoint {self.url!r} is no http address; give one such as http://127.0.0.1:8000/v1")
        self._address = self.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._opener = urllib.request.build_opener(_Stay())

    def answer(self, prompts: Sequence[Prompt], *, temperature: float, seeds: Sequence[int]) -> list[Reply]:
        """A reply to each prompt; they are asked at the same time.

        Raises:
            UserError: nothing answers at the address, or it refuses the key or the model.
        """
        found: list[Reply | Exception] = [Reply(problem="not asked")] * len(prompts)

        def ask(place: int) -> None:
            try:
                found[place] = self._asked(prompts[place], temperature, seeds[place])
            except Exception as error:  # raised again below, where the caller is
                found[place] = error

        # Threads that end with the process: Ctrl-C does not wait for a server that says nothing.
        threads = [threading.Thread(target=ask, args=(place,), daemon=True) for place in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in found:
            if isinstance(one, Exception):
                raise one
        return [one for one in found if isinstance(one, Reply)]

    def _asked(self, one: Prompt, temperature: float, seed: int) -> Reply:
        try:
            body = json.dumps(self._body(one, temperature, seed)).encode()
        except BadSample as error:
            return Reply(problem=str(error))
        problem = ""
        for tries in range(1, len(self.waits) + 2):
            if tries > 1:
                self.sleep(self.waits[tries - 2])
            try:
                return Reply(self._text(self._post(body)), tries=tries)
            except _Nonsense as error:
                problem = str(error)
            except _Refused as error:
                return Reply(problem=str(error), tries=tries)
        return Reply(problem=problem, tries=len(self.waits) + 1)

    def _body(self, one: Prompt, temperature: float, seed: int) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for path in one.images:
            held = io.BytesIO()
            open_image(path).save(held, format="PNG")
            address = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
            content.append({"type": "image_url", "image_url": {"url": address}})
        content.append({"type": "text", "text": one.text})
        asked = {"role": "user", "content": content if one.images else one.text}
        return {
            "model": self.name, "messages": [asked], "temperature": temperature, "seed": seed,
            "max_tokens": self.length,
        }  # fmt: skip

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._address, data=body, headers=headers, method="POST")
        ends = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return self._read(answer, ends)
        except urllib.error.HTTPError as error:
            raise self._judged(error) from None
        except TimeoutError:
            raise _Nonsense(f"no reply within {self.timeout:g} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Nonsense(f"no reply within {self.timeout:g} s") from None
            if isinstance(error.reason, ConnectionResetError | BrokenPipeError):
                raise _Nonsense("the connection was cut") from None
            why = getattr(error.reason, "strerror", None) or str(error.reason)
            raise UserError(
                f"nothing answers at {self._address} ({why}); start the server and run the same command again, which"
                " goes on where it was"
            ) from None
        except (http.client.HTTPException, ConnectionError):
            raise _Nonsense("the connection was cut") from None

    def _read(self, answer: Any, ends: float) -> bytes:
        """All of a reply, within the time for it even where it comes drop by drop."""
        parts: list[bytes] = []
        size = 0
        while part := answer.read1(65536):
            parts.append(part)
            size += len(part)
            if size > LARGEST:
                raise _Nonsense(f"the reply has more than {LARGEST:,} bytes")
            if time.monotonic() > ends:
                raise _Nonsense(f"no whole reply within {self.timeout:g} s")
        return b"".join(parts)

    def _judged(self, error: urllib.error.HTTPError) -> Exception:
        said = _message(error)
        if error.code in _WRONG:
            return UserError(f"{self._address} answers {error.code} for {self.name!r}: {_WRONG[error.code]}{said}")
        if error.code in _LATER:
            return _Nonsense(f"the server answers {error.code}{said}")
        return _Refused(f"the server answers {error.code}{said}")

    def _text(self, raw: bytes) -> str:
        """The words of a reply: what it says, or that it refuses."""
        try:
            said = json.loads(raw)["choices"][0]["message"]
            text = said.get("content")
            if text is None:
                text = said.get("refusal")
            if isinstance(text, list):  # parts, as some servers give them
                text = "".join(part.get("text", "") for part in text)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _Nonsense("what came is no reply of a chat") from None
        if not isinstance(text, str):
            raise _Nonsense("the reply has no words")
        return text


def _message(error: urllib.error.HTTPError) -> str:
    """What a server says of its refusal, on one short line; "" where it says nothing that can be read."""
    try:
        found = json.loads(error.read(65536))["error"]
        text = found["message"] if isinstance(found, dict) else found
        return f": {reason(ValueError(text))[:200]}"
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return ""
