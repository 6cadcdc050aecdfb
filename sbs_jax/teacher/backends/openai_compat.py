"""Any OpenAI-compatible server: vLLM, llama.cpp, TGI, SGLang, or a paid API.

aiohttp, because client time matters: at 64 requests at once it needs about a tenth of the CPU time
per request that the `openai` package or httpx need (`benchmarks/teacher.py` measures it).
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from yarl import URL

from sbs_jax.errors import UserError, require_at_least
from sbs_jax.redaction import Blotter
from sbs_jax.teacher.text import clean, printable
from sbs_jax.teacher.types import Completion, CompletionRequest, Refused, SplitGroup, Transient

_MAX_BYTES = 64 * 2**20
_CHARS_PER_TOKEN = 4
_LONG = re.compile(
    r"context.{0,12}(length|size|window)|maximum context|too (long|large|many tokens)|"
    r"exceed_context|prompt.{0,40}exceed|exceeds?.{0,40}(tokens|length)|"
    r"(inputs?|prompt).{0,40}must have less|string_above_max|reduce the length",
    re.IGNORECASE | re.DOTALL,
)
_CONTENT = re.compile(r"content[_ ](policy|filter|management)|content_filter|safety", re.IGNORECASE)
_QUOTA = re.compile(r"insufficient_quota|billing", re.IGNORECASE)
_SAMPLES = re.compile(
    r"""\bn_cmpl\b|\bn\b.{0,60}(slots|greater|best_of|support|equal|must be|only)|best_of""",
    re.IGNORECASE | re.DOTALL,
)
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class OpenAICompatBackend:
    """Asks an OpenAI-compatible server.

    Args:
      model: The model's name, as the server knows it.
      base_url: Up to and including `/v1`.
      api_key_env: Name of the environment variable that holds the key; the key itself is never
        written anywhere.
      header_env: Further headers whose values come from the environment, header → variable.
      timeout: Seconds that one request may take, from connecting to the last byte.
      samples_per_request: Asks for so many samples with `n`; a server that refuses is asked one by
        one.
    """

    name = "openai_compat"
    one_first = True
    min_concurrency = 1

    def __init__(
        self,
        model: str,
        base_url: str = "http://localhost:8000/v1",
        api_key_env: str = "OPENAI_API_KEY",
        header_env: Mapping[str, str] | None = None,
        timeout: float = 300.0,
        samples_per_request: int = 1,
    ) -> None:
        if not model:
            raise UserError("TEACHER_MODEL is missing: the model's name, as the server knows it.")
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"BASE_URL = {_public(base_url)!r} must look like http://localhost:8000/v1."
            )
        if parts.username or parts.password or parts.query:
            raise UserError(
                "BASE_URL must hold neither user nor password nor query: keys come from the "
                "environment (API_KEY_ENV, HEADER_ENV)."
            )
        if timeout <= 0:
            raise UserError(f"TIMEOUT = {timeout} must be above 0 seconds.")
        require_at_least(1, SAMPLES_PER_REQUEST=samples_per_request)
        self.model = model
        self.samples_per_request = samples_per_request
        self._public_url = _public(base_url)
        base = base_url.rstrip("/")
        self._url = {
            False: URL(f"{base}/completions", encoded=True),
            True: URL(f"{base}/chat/completions", encoded=True),
        }
        self._headers = {"Content-Type": "application/json"}
        secrets: list[str] = []
        self._key_env = api_key_env
        key = os.environ.get(api_key_env, "").strip()
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
            secrets.append(key)
        for header, variable in (header_env or {}).items():
            value = os.environ.get(variable, "").strip()
            if not value:
                raise UserError(f"HEADER_ENV names {variable}, which is not set.")
            self._headers[header] = value
            secrets.append(value)
        self._blotter = Blotter(secrets)
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(30.0, timeout))
        # A proxy of the environment's is for the world outside, not for a server on this machine.
        self._trust_env = parts.hostname not in _LOOPBACK
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Opens the pool of connections."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=self._timeout,
            trust_env=self._trust_env,
        )

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Sends one HTTP request for `requests`; see `Backend`."""
        assert self._session is not None, "start() was not called"
        first = requests[0]
        payload = first.payload
        if len(requests) > 1:
            payload = b'%s,"n":%d}' % (payload[:-1], len(requests))
        url = self._url[not isinstance(first.prompt, str)]
        started = time.monotonic()
        try:
            async with self._session.post(url, data=payload, allow_redirects=False) as response:
                data = await _read(response)
        except TimeoutError as error:
            raise Transient(f"no answer within {self._timeout.total:g} s") from error
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise Transient(self._safe(f"{type(error).__name__}: {error}")) from error
        if response.status != 200:
            self._raise_for(response, data, len(requests))
        return self.completions_in(data, requests, time.monotonic() - started)

    def count_tokens(self, prompt: str | list[dict[str, str]]) -> tuple[int, bool]:
        """Estimates: only the server has the tokenizer, and a preview sends it nothing."""
        text = prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt)
        return len(text) // _CHARS_PER_TOKEN + 1, False

    def describe(self) -> dict[str, Any]:
        """Returns the server's address (without credentials) and the client."""
        return {"base_url": self._public_url, "client": f"aiohttp {aiohttp.__version__}"}

    def completions_in(
        self, data: bytes, requests: Sequence[CompletionRequest], seconds: float
    ) -> list[Completion]:
        """Reads the completions from the body of a response; secrets in it are blotted out.

        Raises:
          Transient: it holds no completions.
        """
        try:
            body = json.loads(data)
            said = completions_of(body, len(requests), seconds, self.model)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # Blotted out before it is cut: half a key would not be found any more.
            start = self._safe(data[:4000].decode("utf-8", "replace"))[:80]
            raise Transient(f"not a completion: {start!r}", row=True) from error
        for completion in said:
            # A server, or a proxy that shows what it got, may send the key back.
            completion.text = self._blotter.in_text(completion.text)
            completion.finish_reason = self._blotter.in_text(completion.finish_reason)
            completion.server = self._blotter.in_value(completion.server)
        return said

    def _raise_for(self, response: aiohttp.ClientResponse, data: bytes, samples: int) -> None:
        status = response.status
        said = self._safe(_message(data))
        summary = f"{self._public_url} answered {status}" + (f": {said}" if said else "")
        if status == 429 and not _QUOTA.search(said):
            raise Transient(summary, retry_after=retry_after_of(response.headers) or 0.0)
        if status in (408, 409, 425) or status >= 500:
            if _LONG.search(said) and status == 500:
                raise Refused(summary, row=True)
            raise Transient(summary, retry_after=retry_after_of(response.headers), row=True)
        if status == 401 or status == 403:
            raise Refused(
                f"{summary} (the key is read from the environment variable {self._key_env}, which "
                f"is {'set' if 'Authorization' in self._headers else 'not set'}).",
                fatal=True,
            )
        if status in (400, 413, 422):
            if samples > 1 and _SAMPLES.search(said):
                raise SplitGroup
            raise Refused(summary, row=bool(_LONG.search(said) or _CONTENT.search(said)))
        raise Refused(f"{summary} (is BASE_URL right, /v1 included, and MODEL?)", fatal=True)

    def _safe(self, text: str) -> str:
        # Before and after control characters are dropped: they may stand within a key.
        text = self._blotter.in_message(clean(self._blotter.in_message(text)).replace("\n", " "))
        return printable(text, 300)


def completions_of(
    body: Mapping[str, Any], samples: int, seconds: float = 0.0, model: str = ""
) -> list[Completion]:
    """Reads a response body of `/completions` or `/chat/completions`.

    Args:
      body: The parsed JSON.
      samples: How many choices there must be.
      seconds: The time that the request took.
      model: The model that was asked; the server's name for it is kept where it differs.

    Raises:
      ValueError, KeyError, TypeError, AttributeError: it is no such body.
    """
    choices = body["choices"]
    if len(choices) > 1:
        choices = sorted(choices, key=lambda choice: choice.get("index", 0))
    if len(choices) != samples:
        raise ValueError(f"{len(choices)} choices instead of {samples}")
    usage = body.get("usage") or {}
    prompt_tokens: Any = usage.get("prompt_tokens")
    new_tokens: Any = usage.get("completion_tokens")
    estimated = not (_count(prompt_tokens) and _count(new_tokens))
    if estimated:
        prompt_tokens = new_tokens = 0
    server = {}
    if body.get("model") not in (None, model):
        server["model"] = body["model"]
    if body.get("system_fingerprint"):
        server["fingerprint"] = body["system_fingerprint"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if cached:
        server["cached_tokens"] = cached
    found = []
    for place, choice in enumerate(choices):
        message = choice.get("message")
        text = choice["text"] if message is None else message.get("content") or ""
        if not isinstance(text, str):
            raise TypeError("the text is no text")
        # One usage for all samples: the prompt is paid for once, the rest is shared out.
        share = new_tokens // samples + (place < new_tokens % samples)
        said = dict(server)
        thoughts = message and (message.get("reasoning_content") or message.get("reasoning"))
        if thoughts:
            said["reasoning"] = thoughts
        found.append(
            Completion(
                text=text,
                finish_reason=str(choice.get("finish_reason") or ""),
                prompt_tokens=0 if place else prompt_tokens,
                completion_tokens=len(text) // _CHARS_PER_TOKEN + 1 if estimated else share,
                usage_estimated=estimated,
                logprob=_logprob(choice.get("logprobs")),
                server=said,
                seconds=seconds,
            )
        )
    return found


def _logprob(logprobs: Any) -> float | None:
    if not isinstance(logprobs, dict):
        return None
    if isinstance(logprobs.get("token_logprobs"), list):
        values = [v for v in logprobs["token_logprobs"] if v is not None]
    elif isinstance(logprobs.get("content"), list):
        values = [entry["logprob"] for entry in logprobs["content"]]
    else:
        return None
    return float(sum(values)) if values else None


def _count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


async def _read(response: aiohttp.ClientResponse) -> bytes:
    length = response.content_length
    if length is not None and length <= _MAX_BYTES:
        return await response.read()
    pieces, size = [], 0
    async for piece in response.content.iter_chunked(2**16):
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_BYTES:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {_MAX_BYTES} bytes")
    return b"".join(pieces)


def _message(data: bytes) -> str:
    """Returns what an error body says: OpenAI's, FastAPI's, TGI's, or its first characters."""
    text = data[:8000].decode("utf-8", "replace")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return text
    if not isinstance(body, dict):
        return text
    error = body.get("error", body)
    if isinstance(error, dict):
        said = error.get("message") or error.get("detail") or text
        marks = [str(error[k]) for k in ("type", "code") if isinstance(error.get(k), str)]
        return " ".join([str(said), *(f"[{mark}]" for mark in marks)])
    return str(error)


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that `Retry-After` asks for (a number or a date), or None."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("Retry-After")
        if value is None:
            return None
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _public(url: str) -> str:
    """Returns `url` without user, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
