"""A language model behind an OpenAI-compatible endpoint: asked once for each question, remembered on disk."""

import hashlib
import http.client
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import read_text

API_KEY_VARIABLE = "OPENAI_API_KEY"
Messages = list[dict[str, str]]

# Too many requests, time-outs and faults on the server's side pass; other refusals do not.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT_S = 60.0


def default_cache() -> Path:
    """Where replies are kept when no folder is named."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "listwise_preference" / "judge"


@dataclass
class Judge:
    """Chat completions of one model at one endpoint, temperature 0 unless asked otherwise.

    ``served`` and ``cached`` count the replies that came from the endpoint and from disk. The key is read
    from OPENAI_API_KEY and is sent only where it is set.
    """

    base_url: str
    model: str
    cache: Path
    retries: int = 6
    timeout_s: float = 120.0
    first_wait_s: float = 1.0
    workers: int = 1
    served: int = 0
    cached: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise DataError(f"the endpoint {self.base_url!r} is not an http(s) address, like http://localhost:8000/v1")
        # A proxy is for the world outside, not for a server on this machine.
        here = urllib.parse.urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.cache}: cannot keep replies there ({error.strerror}); name another folder with --judge_cache"
            ) from error

    def replies(self, conversations: Sequence[Messages], temperature: float = 0.0, attempt: int = 0) -> list[str]:
        """One reply for each conversation, in order; a progress bar counts them.

        ``attempt`` tells apart the replies to the same question asked again.
        """
        from tqdm import tqdm

        with ThreadPoolExecutor(self.workers) as pool:
            asked = [pool.submit(self.reply, messages, temperature, attempt) for messages in conversations]
            try:
                return [future.result() for future in tqdm(asked, desc=self.model, unit="reply", disable=None)]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def reply(self, messages: Messages, temperature: float = 0.0, attempt: int = 0) -> str:
        """The reply's text, from disk where the same request was answered before."""
        body = {"model": self.model, "messages": messages, "temperature": temperature}
        identity = json.dumps({"endpoint": self.base_url, "attempt": attempt, **body}, sort_keys=True)
        path = self.cache / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"
        if path.is_file():
            try:
                text = json.loads(path.read_text(encoding="utf-8"))["reply"]
                with self._counting:
                    self.cached += 1
                return str(text)
            except (json.JSONDecodeError, KeyError):
                pass  # cut short by a full disk, say: ask again
        response = self._post(body)
        try:
            # A model that was kept from answering sends null.
            text = response["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(
                f"{self.base_url}: the reply has no choices[0].message.content: {json.dumps(response)[:300]}"
            ) from error
        kept = {"request": body, "served_by": response.get("model"), "reply": text}
        unfinished = path.with_suffix(f".{os.getpid()}-{id(body)}")
        unfinished.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        unfinished.replace(path)
        with self._counting:
            self.served += 1
        return str(text)

    def _post(self, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.base_url.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if key := os.environ.get(API_KEY_VARIABLE):
            request.add_header("Authorization", f"Bearer {key}")
        trouble = ""
        for attempt in range(self.retries + 1):
            wait_s = min(_LONGEST_WAIT_S, self.first_wait_s * 2**attempt) * self._random.uniform(0.5, 1.0)
            try:
                with self._opener.open(request, timeout=self.timeout_s) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace").strip()[:300]
                trouble = f"HTTP {error.code}: {said or error.reason}"
                if error.code not in _PASSING:
                    raise DataError(f"{self.base_url}: refused the request with {trouble}") from error
                asked = error.headers.get("Retry-After", "")
                if asked.isdigit():
                    wait_s = min(_LONGEST_WAIT_S, float(asked))
            except json.JSONDecodeError:
                trouble = "the reply is not JSON"
            except (OSError, http.client.HTTPException) as error:  # no connection, or broken, or too slow
                trouble = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt < self.retries:
                time.sleep(wait_s)
        raise DataError(
            f"{self.base_url}: no reply after {self.retries + 1} tries; the last said: {trouble}. "
            "The replies so far are kept: run the same command again to go on."
        )

    def describe(self) -> dict[str, Any]:
        """For the result: who judged, and how many replies came from where."""
        return {
            "model": self.model,
            "base_url": self.base_url,
            "replies_served": self.served,
            "replies_from_cache": self.cached,
        }


def read_template(path: Path, names: Sequence[str]) -> str:
    """A prompt template with either ``{name}`` for each of ``names``, or as many bare ``{}`` in that order.

    The result has the named form. DataError where it has neither.
    """
    template = read_text(path)
    if template.count("{}") == len(names):
        for name in names:
            template = template.replace("{}", f"{{{name}}}", 1)
    missing = [name for name in names if f"{{{name}}}" not in template]
    if missing:
        fields = ", ".join(f"{{{name}}}" for name in names)
        raise DataError(f"{path}: a prompt template needs {fields}, or {len(names)} bare {{}} in that order")
    return template


def fill(template: str, values: dict[str, str]) -> str:
    """The template with each ``{name}`` replaced in one pass: braces inside the values stay as they are."""
    names = "|".join(re.escape(name) for name in values)
    return re.sub(rf"\{{({names})\}}", lambda found: values[found[1]], template)
