"""A mock OpenAI-compatible server with latency, slots and faults, on 127.0.0.1.

The tests and `benchmarks/teacher.py` start it as a process of its own:

    python benchmarks/mock_llm_server.py '{"latency": 0.05, "slots": 256}'

It prints its port. Faults are drawn by a seed from the prompt and the number of the try, so a run
can be repeated. It writes one line a request to `log` (`answered`, `429`, …, and a digest of the
prompt), after the answer's last byte went to the kernel. `GET /stats` returns counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
from collections import Counter, deque

OPTIONS = {
    "latency": 0.0,  # seconds
    "slots": 0,  # answered at once; the rest queue (0: no limit)
    "rate_429": 0.0,
    "rate_500": 0.0,
    "rate_timeout": 0.0,  # never answered
    "rate_cut": 0.0,  # connection cut in the middle of the body
    "rate_garbage": 0.0,  # 200 with a body that is no completion
    "retry_after": "0.05",
    "seed": 0,
    "port": 0,
    "log": "",
    "text": "",  # the completion; "" adds up the last two numbers of the prompt
    "usage": True,
    "max_n": 1,
    "context": 0,  # prompts of more characters are refused
    "status": 0,  # every request gets this status
    "bad_marker": "",  # prompts with this text are refused with 400
    "fail_first": 0,  # so many requests get 503 first
    "fail_after": 0,  # all requests after so many get 401
    "message": "",  # what the error says, after the key
    "echo": 0,  # completions end in the headers and the body that came
}

GARBAGE = (
    b"<html>bad gateway</html>",
    b'{"choices": []}',
    b'{"choices": [{"text": 17}]}',
    b'{"cho',
    b"\xff\xfe\x00\x80",
    b"[" * 50000,
    b"null",
)
REASONS = {200: "OK", 400: "Bad Request", 429: "Too Many Requests", 500: "Internal Server Error"}


class State:
    """Options and counts, shared by all connections."""

    def __init__(self, options: dict) -> None:
        self.options = {**OPTIONS, **options}
        self.counts = Counter()
        self.tries = Counter()
        self.busy = 0
        self.max_busy = 0
        self.queue = deque()
        self.plain = not any(
            self.options[k]
            for k in self.options
            if k.startswith("rate_")
            or k in ("log", "context", "status", "bad_marker", "fail_first", "fail_after", "echo")
        )
        path = self.options["log"]
        self.log = open(path, "ab", buffering=0) if path else None  # noqa: SIM115
        self.fixed = None
        if self.options["text"] and self.plain:
            self.fixed = response(200, completion(self, b"", self.options["text"], False))


def completion(state: State, raw: bytes, text: str, chat: bool, n: int = 1) -> bytes:
    """Returns the body of an answer with `n` choices."""
    choices = []
    for index in range(n):
        choice = {"index": index, "finish_reason": "stop", "logprobs": None}
        if chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        choices.append(choice)
    body = {"id": "cmpl-0", "object": "text_completion", "model": "mock", "choices": choices}
    if state.options["usage"]:
        body["usage"] = {"prompt_tokens": len(raw) // 4, "completion_tokens": len(text) // 4 * n}
    return json.dumps(body).encode()


def response(status: int, body: bytes, headers: str = "") -> bytes:
    """Returns a whole HTTP response."""
    head = (
        f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\nContent-Type: application/json\r\n"
        f"{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One client connection; no pipelining, as no HTTP client does it."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.buffer = b""
        self.need = None

    def connection_made(self, transport) -> None:
        """Asyncio calls it."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Asyncio calls it: collects a request."""
        self.buffer += data
        if self.need is None:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            found = re.search(rb"content-length:\s*(\d+)", head)
            self.start = end + 4
            self.need = self.start + (int(found[1]) if found else 0)
        if len(self.buffer) < self.need:
            return
        head, body = self.buffer[: self.start], self.buffer[self.start : self.need]
        self.buffer, self.need = self.buffer[self.need :], None
        if head.startswith(b"GET"):
            stats = {**self.state.counts, "max_busy": self.state.max_busy}
            self.transport.write(response(200, json.dumps(stats).encode()))
            return
        self.state.counts["requests"] += 1
        slots = self.state.options["slots"]
        if slots and self.state.busy >= slots:
            self.state.queue.append((self, head, body))
        else:
            self.begin(head, body)

    def begin(self, head: bytes, body: bytes) -> None:
        """Takes a slot."""
        self.state.busy += 1
        self.state.max_busy = max(self.state.max_busy, self.state.busy)
        if self.state.options["latency"]:
            loop = asyncio.get_running_loop()
            loop.call_later(self.state.options["latency"], self.finish, head, body)
        else:
            self.finish(head, body)

    def finish(self, head: bytes, body: bytes) -> None:
        """Gives the slot to the next in the queue, and answers."""
        state = self.state
        state.busy -= 1
        if state.queue:
            waiting, *request = state.queue.popleft()
            waiting.begin(*request)
        if not self.transport.is_closing():
            if state.fixed is not None:
                state.counts["answered"] += 1
                self.transport.write(state.fixed)
            else:
                self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        """Draws what happens to this request, and lets it happen."""
        state, options = self.state, self.state.options
        request = json.loads(body)
        chat = "messages" in request
        prompt = request["messages"][-1]["content"] if chat else request["prompt"]
        digest = hashlib.sha256(body).hexdigest()[:24]
        tries = state.tries[digest] = state.tries[digest] + 1
        seed = f"{options['seed']} {digest} {tries}".encode()
        draw = int.from_bytes(hashlib.sha256(seed).digest()[:6], "big") / 2**48
        fate = "answered"
        for name in ("429", "500", "timeout", "cut", "garbage"):
            rate = options[f"rate_{name}"]
            if draw < rate:
                fate = name
                break
            draw -= rate
        if options["fail_first"] >= state.counts["requests"]:
            fate = "503"
        elif options["fail_after"] and state.counts["requests"] > options["fail_after"]:
            fate, options["status"] = "status", 401
        elif options["status"]:
            fate = "status"
        elif options["bad_marker"] and options["bad_marker"] in prompt:
            fate = "bad"
        elif options["context"] and len(prompt) > options["context"]:
            fate = "context"
        elif request.get("n", 1) > options["max_n"]:
            fate = "n"
        if options["text"]:
            text = options["text"]
        else:
            numbers = re.findall(r"\d+", prompt)[-2:]
            text = f" {' + '.join(numbers)}. The answer is ({' + '.join(numbers)})."
        if options["echo"]:
            text += f" {head.decode()} {body.decode()}"
        whole = completion(state, body, text, chat, request.get("n", 1))
        state.counts[fate] += 1
        if fate == "answered":
            self.transport.write(response(200, whole))
        elif fate == "429":
            headers = f"Retry-After: {options['retry_after']}\r\n" if options["retry_after"] else ""
            self.transport.write(response(429, b'{"error": {"message": "slow down"}}', headers))
        elif fate == "500":
            self.transport.write(response(500, b"oops"))
        elif fate == "503":
            self.transport.write(response(503, b'{"error": {"message": "Loading model"}}'))
        elif fate == "cut":
            self.transport.write(response(200, whole)[: -len(whole) // 2])
            self.transport.close()
        elif fate == "garbage":
            self.transport.write(response(200, GARBAGE[int(digest, 16) % len(GARBAGE)]))
        elif fate == "status":
            key = re.search(rb"authorization: bearer ([^\r]*)", head, re.IGNORECASE)
            said = f"refused {key[1].decode() if key else ''}{options['message']}"
            body = json.dumps({"error": {"message": said}}).encode()
            self.transport.write(response(options["status"], body))
        elif fate == "context":
            said = "This model's maximum context length is 5 tokens."
            self.transport.write(response(400, json.dumps({"error": {"message": said}}).encode()))
        elif fate == "n":
            said = "n_cmpl cannot be greater than the number of slots"
            self.transport.write(response(400, json.dumps({"error": {"message": said}}).encode()))
        elif fate == "bad":
            self.transport.write(response(400, b'{"error": {"message": "I do not like this"}}'))
        if state.log is not None:
            state.log.write(f"{fate} {digest}\n".encode())


async def serve(options: dict) -> None:
    """Serves until the process that started this one is gone."""
    state = State(options)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(state), "127.0.0.1", state.options["port"], backlog=2048
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # never outlives the process that started it
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    given = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    unknown = set(given) - set(OPTIONS)
    if unknown:
        raise SystemExit(f"unknown options: {sorted(unknown)}")
    try:
        import uvloop

        uvloop.run(serve(given))
    except ImportError:
        asyncio.run(serve(given))
