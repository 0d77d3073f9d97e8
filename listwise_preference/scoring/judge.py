"""A language model behind an OpenAI-compatible endpoint: asked once for each prompt, remembered on disk.

What it asks and what it takes is bounded: no redirect is followed, so that the key goes to the given host alone; a
reply is at most 1 MB; the key is neither kept nor shown. A reply that is none (not JSON, not UTF-8, too large, without
a text) is asked for again; where none of the tries brings one the prompt's reply is empty, is not kept, and is counted.
"""

import hashlib
import json
import logging
import os
import random
import re
import threading
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from listwise_preference.cli import Parser, count, positive
from listwise_preference.errors import DataError
from listwise_preference.files import parse_json, read_json, read_text, write_atomic

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger("listwise_preference")

API_KEY_VARIABLE = "OPENAI_API_KEY"

# Too many requests, time-outs and faults on the server's side pass; other refusals do not.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT_S = 60.0
_LARGEST_REPLY = 1_000_000  # bytes
# So many prompts without one usable reply to any: it is not a judge that answers there.
_HOPELESS = 5
_SECRET = 8  # characters of the shortest key that is one


def add_judge_options(parser: Parser) -> None:
    """Options of how the endpoint is asked."""
    add = parser.add_argument
    add("--judge_cache", type=Path, help="folder that keeps replies (default ~/.cache/listwise_preference/judge)")
    add("--judge_retries", type=int, default=6, help="tries again after a fault, waiting longer each time")
    add("--judge_timeout", type=positive, default=120.0, help="seconds for one reply")
    add("--judge_workers", type=count, default=1, help="requests at a time")


def judge_of(args: Namespace, base_url: str, model: str) -> "Judge":
    """The judge that the options describe."""
    cache = args.judge_cache or default_cache()
    return Judge(base_url, model, cache, args.judge_retries, args.judge_timeout, workers=args.judge_workers)


def default_cache() -> Path:
    """Where replies are kept when no folder is named."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "listwise_preference" / "judge"


class _Failed(Exception):
    """One try brought no reply; another may. ``wait_s`` is what the server asks for, if it does."""

    def __init__(self, trouble: str, wait_s: float | None = None) -> None:
        super().__init__(trouble)
        self.wait_s = wait_s


class _Unusable(_Failed):
    """The server did answer, and what it sent is no reply."""


@dataclass
class Judge:
    """Chat completions of one model at one endpoint, temperature 0 unless asked otherwise.

    ``served`` and ``cached`` count the replies that came from the endpoint and from disk, ``unusable`` the prompts
    that no try brought a reply to. The key is read from OPENAI_API_KEY and is sent only where it is set.

    Raises:
        DataError: the endpoint or the key cannot be used, the folder cannot be written, or httpx2 is missing.
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
    unusable: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise DataError("a judge needs the package httpx2; get it with: pip install httpx2") from error
        try:
            url = httpx2.URL(self.base_url)
        except httpx2.InvalidURL:
            url = httpx2.URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise DataError(f"the endpoint {self.base_url!r} is not an http(s) address, like http://localhost:8000/v1")
        if url.userinfo:
            raise DataError(f"the endpoint holds a password: give it without, and the key in {API_KEY_VARIABLE}")
        self._key = os.environ.get(API_KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise DataError(f"{API_KEY_VARIABLE} holds characters that no key has")
        # A proxy is for the world outside, not for a server on this machine.
        self._here = url.host in ("localhost", "127.0.0.1", "::1")
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.cache}: cannot keep replies there ({error.strerror}); name another folder with --judge_cache"
            ) from error

    def replies(self, prompts: Sequence[str], temperature: float = 0.0, attempt: int = 0) -> list[str]:
        """One reply for each prompt, in order, empty where nothing usable came; a progress bar counts them.

        ``attempt`` tells apart the replies to the same prompt asked again.
        """
        import httpx2
        from tqdm import tqdm

        # Compressed replies could be far larger than what is counted.
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        with (
            httpx2.Client(
                headers=headers, timeout=self.timeout_s, trust_env=not self._here, follow_redirects=False
            ) as client,
            ThreadPoolExecutor(self.workers) as pool,
        ):
            asked = [pool.submit(self._reply, client, prompt, temperature, attempt) for prompt in prompts]
            try:
                replies = [future.result() for future in tqdm(asked, desc=self.model, unit="reply", disable=None)]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if without := replies.count(None):
            logger.warning(f"{self.base_url}: {without} of {len(prompts)} prompts got no usable reply in all tries")
        return [reply or "" for reply in replies]

    def _reply(self, client: "httpx2.Client", prompt: str, temperature: float, attempt: int) -> str | None:
        """The reply's text, from disk where the same request was answered before; None where none is usable."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "temperature": temperature}
        identity = json.dumps({"endpoint": self.base_url, "attempt": attempt, **body}, sort_keys=True)
        file = self.cache / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"
        if (kept := _kept_reply(file)) is not None:
            with self._writing:
                self.cached += 1
            return kept
        try:
            text, served_by = self._ask(client, body)
        except _Unusable as trouble:
            with self._writing:
                self.unusable += 1
                if self.unusable >= _HOPELESS and not self.served + self.cached:
                    raise DataError(f"{self.base_url}: no usable reply to {self.unusable} prompts: {trouble}") from None
            return None
        kept_as = {"request": body, "served_by": served_by, "reply": text}
        with self._writing:  # two of the same prompts write the same file
            write_atomic(file, json.dumps(kept_as, indent=1))
            self.served += 1
        return text

    def _ask(self, client: "httpx2.Client", body: Mapping[str, Any]) -> tuple[str, Any]:
        """The text, and the model that the endpoint names."""
        last = _Failed("")
        for attempt in range(self.retries + 1):
            wait_s = min(_LONGEST_WAIT_S, self.first_wait_s * 2**attempt) * self._random.uniform(0.5, 1.0)
            try:
                return self._try(client, body)
            except _Failed as failed:
                last = failed
                if failed.wait_s is not None:
                    wait_s = min(_LONGEST_WAIT_S, failed.wait_s)
            if attempt < self.retries:
                time.sleep(wait_s)
        if isinstance(last, _Unusable):
            raise last
        raise DataError(
            f"{self.base_url}: no reply after {self.retries + 1} tries; the last said: {last}. "
            "The replies so far are kept: run the same command again to go on."
        )

    def _try(self, client: "httpx2.Client", body: Mapping[str, Any]) -> tuple[str, Any]:
        import httpx2

        content, end = bytearray(), time.monotonic() + self.timeout_s
        try:
            with client.stream("POST", self.base_url.rstrip("/") + "/chat/completions", json=body) as response:
                for part in response.iter_raw():
                    content += part
                    if len(content) > _LARGEST_REPLY:
                        raise _Unusable(f"the reply is larger than {_LARGEST_REPLY:,} bytes")
                    if time.monotonic() > end:
                        raise _Failed(f"the reply was not whole after {self.timeout_s:g} s")
        except httpx2.HTTPError as error:  # no connection, or broken, or too slow
            raise _Failed(str(error) or type(error).__name__) from error
        if response.is_success:
            text, served_by = _text_in(bytes(content))
            return self._without_key(text), served_by
        said = self._without_key(content.decode("utf-8", "replace").strip())
        trouble = f"HTTP {response.status_code}: {said[:300] or response.reason_phrase}"
        if response.status_code not in _PASSING:
            where = ""
            if response.is_redirect:
                location = self._without_key(response.headers.get("Location", "?"))
                where = f" (a redirect to {location[:300]}, which is not followed)"
            raise DataError(f"{self.base_url}: refused the request with {trouble}{where}")
        wait = response.headers.get("Retry-After", "")
        raise _Failed(trouble, float(wait) if wait.isdecimal() and wait.isascii() else None)

    def _without_key(self, text: str) -> str:
        """For files and messages: a server may send back what it got. Short keys are words, like EMPTY."""
        return text.replace(self._key, "(key)") if len(self._key) >= _SECRET else text

    def describe(self) -> dict[str, Any]:
        """For the result: who judged, and how many replies came from where."""
        return {
            "model": self.model,
            "base_url": self.base_url,
            "replies_served": self.served,
            "replies_from_cache": self.cached,
            "prompts_without_usable_reply": self.unusable,
        }


def _text_in(content: bytes) -> tuple[str, Any]:
    """The reply's text and model in what an endpoint sent; raises _Unusable where it is no reply."""
    try:
        reply = parse_json(content.decode("utf-8"), "the reply")
        text = reply["choices"][0]["message"]["content"]
    except UnicodeDecodeError as error:
        raise _Unusable("the reply is not UTF-8") from error
    except DataError as error:
        raise _Unusable(str(error)) from error
    except (KeyError, IndexError, TypeError) as error:
        said = content.decode("utf-8")[:300]
        raise _Unusable(f"the reply has no choices[0].message.content: {said}") from error
    # A model that was kept from answering sends null. Half a surrogate pair cannot be written.
    served_by = reply.get("model")
    return str(text or "").encode("utf-8", "replace").decode(), served_by if isinstance(served_by, str) else None


def _kept_reply(file: Path) -> str | None:
    """The reply in a file of the cache; None where there is none or it is damaged, by a full disk, say."""
    try:
        reply = read_json(file)["reply"]
    except (DataError, LookupError, TypeError):
        return None
    return reply if isinstance(reply, str) else None


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
