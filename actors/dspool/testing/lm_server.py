"""A local OpenAI-compatible LM server for tests and benchmarks.

It answers `POST /v1/chat/completions` (also streamed) with what the offline engine reads out of the prompt, after a
set latency, and by script with errors, 429s, refusals, cut answers, garbage or broken connections. `GET /stats` gives
the counts.

    with LMServer(latency_s=0.05) as server:                  # a thread of this process
        PoolConfig(lm_profiles={"test": {"model": "openai/test", "endpoint": server.url}})

    python -m dspool.testing.lm_server --port 8901 --latency 0.2     # a process of its own
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dspool.programs.offline.engine import reply_to

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
_ERROR_TYPES = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to one request. None is the server's default."""

    status: int = 200
    text: str | None = None
    """The model's answer; None is the offline engine's."""
    latency_s: float | None = None
    finish_reason: str = "stop"
    """Why the answer ends: `length` and `content_filter` are a cut one."""
    refusal: str | None = None
    """The model refuses with this text, in place of an answer."""
    usage: dict[str, Any] | None = None
    """What the usage says besides, or instead of, its counts of words."""
    retry_after_s: float | str | None = None
    """Seconds, or a date as HTTP writes it."""
    error_code: str | None = None
    """The `code` in the body of an error."""
    body: bytes | None = None
    """The whole body, whatever the request: the only answer to `/v1/messages`, Anthropic's."""
    drop: bool = False
    """Close the connection without an answer."""
    drop_after_tokens: int | None = None
    """Break a stream off after this many tokens."""


class LMServer:
    """On loopback, in a thread of its own as a context manager, or in a running loop with `serve()`."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
        token_interval_s: float = 0.0,
        text: str | None = None,
        answer: Callable[[dict[str, Any]], str | None] | None = None,
        api_key: str | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.latency_s = latency_s
        self.token_interval_s = token_interval_s
        self.text = text
        self.answer = answer
        """The model's answer to a request's body; None is the offline engine's. For more than one request at a time."""
        self.api_key = api_key
        """If set, any other bearer token gets a 401."""
        self.requests = 0
        self.finished = 0
        self.aborted = 0
        """Requests whose client went away before the answer was complete."""
        self.running = 0
        self.seen: deque[dict[str, Any]] = deque(maxlen=100)
        """The last request bodies."""
        self._script: deque[Reply] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._start_error: BaseException | None = None

    @property
    def url(self) -> str:
        """The base URL for an LM profile's `endpoint`."""
        return f"http://{self.host}:{self.port}/v1"

    def script(self, *replies: Reply) -> None:
        """Answer the next requests with these replies, in order; later ones as before."""
        self._script.extend(replies)

    def stats(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "finished": self.finished,
            "aborted": self.aborted,
            "running": self.running,
        }

    async def serve(self) -> None:
        """Listen until `close()`; `url` is valid once `wait_ready()` returns."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), self.host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            server.close()

    def wait_ready(self, timeout_s: float = 10.0) -> None:
        """Raises what made the start fail, or TimeoutError."""
        if not self._ready.wait(timeout_s):
            raise TimeoutError(f"the LM server did not start within {timeout_s} s")
        if self._start_error is not None:
            raise self._start_error

    def close(self) -> None:
        """Stop listening; from any thread."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(timeout=5)

    def __enter__(self) -> LMServer:
        self._thread = threading.Thread(target=self._run, name="lm-server", daemon=True)
        self._thread.start()
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            asyncio.run(self.serve())
        except BaseException as failed:
            self._start_error = failed
            self._ready.set()

    def _next(self) -> Reply:
        return self._script.popleft() if self._script else Reply()


class _Connection(asyncio.Protocol):
    """One client connection: keep-alive, one request at a time."""

    def __init__(self, server: LMServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._task is not None:
            self._server.aborted += 1
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._start_next()

    def _start_next(self) -> None:
        """Start on the next request, if all of it is there."""
        if self._task is not None:
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].decode("latin-1")
        lines = head.split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        length = int(headers.get("content-length") or 0)
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        method, path, *_ = lines[0].split(" ")
        if method == "POST" and path.endswith(("/chat/completions", "/messages")):
            self._server.running += 1
            self._task = asyncio.get_running_loop().create_task(self._complete(headers, body))
            self._task.add_done_callback(self._finish)
        elif method == "GET" and path == "/stats":
            self._respond(200, json.dumps(self._server.stats()).encode())
            self._start_next()
        else:
            self._respond(404, _error(404, f"no {path} here"))
            self._start_next()

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._server.running -= 1
        self._task = None
        if not task.cancelled() and task.exception() is not None and self._transport is not None:
            self._transport.abort()
        if self._transport is not None:
            self._start_next()

    async def _complete(self, headers: dict[str, str], body: bytes) -> None:
        server = self._server
        server.requests += 1
        reply = server._next()
        if latency := server.latency_s if reply.latency_s is None else reply.latency_s:
            await asyncio.sleep(latency)
        if reply.drop:
            if self._transport is not None:
                self._transport.abort()
            return
        if server.api_key is not None and headers.get("authorization") != f"Bearer {server.api_key}":
            self._respond(401, _error(401, "wrong key"))
        elif reply.body is not None:
            self._respond(reply.status, reply.body)
        elif reply.status != 200:
            self._respond(
                reply.status,
                _error(reply.status, "as scripted", reply.error_code),
                retry_after=reply.retry_after_s,
            )
        else:
            request = json.loads(body)
            server.seen.append(request)
            answer = (
                reply.text or server.text or (server.answer and server.answer(request)) or _answer(request)
            )
            if request.get("stream"):
                await self._stream(request, answer, reply)
            else:
                self._respond(200, json.dumps(_completion(request, answer, reply)).encode())
        server.finished += 1

    async def _stream(self, request: dict[str, Any], answer: str, reply: Reply) -> None:
        self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        base = {
            "id": "chatcmpl-test",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": request["model"],
        }
        self._event(
            {**base, "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
        )
        key = "content" if reply.refusal is None else "refusal"
        for number, token in enumerate(re.findall(r"\S+\s*|\s+", reply.refusal or answer)):
            if number == reply.drop_after_tokens:
                if self._transport is not None:
                    self._transport.abort()
                return
            if self._server.token_interval_s:
                await asyncio.sleep(self._server.token_interval_s)
            self._event({**base, "choices": [{"index": 0, "delta": {key: token}, "finish_reason": None}]})
        self._event({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish_reason}]})
        self._event({**base, "choices": [], "usage": _usage(request, answer, reply)})
        end = b"data: [DONE]\n\n"
        self._write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(end), end))

    def _event(self, data: dict[str, Any]) -> None:
        event = b"data: " + json.dumps(data).encode() + b"\n\n"
        self._write(b"%x\r\n%s\r\n" % (len(event), event))

    def _respond(self, status: int, body: bytes, *, retry_after: float | str | None = None) -> None:
        retry = f"retry-after: {retry_after}\r\n" if retry_after is not None else ""
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\ncontent-type: application/json\r\n"
            f"{retry}content-length: {len(body)}\r\n\r\n"
        )
        self._write(head.encode() + body)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _answer(request: dict[str, Any]) -> str:
    texts = {message["role"]: _text(message["content"]) for message in request.get("messages", [])}
    return reply_to(texts.get("system", texts.get("developer", "")), texts.get("user", ""))


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or [])


def _completion(request: dict[str, Any], answer: str, reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer}
    if reply.refusal is not None:
        message |= {"content": None, "refusal": reply.refusal}
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 0,
        "model": request.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
        "usage": _usage(request, answer, reply),
    }


def _usage(request: dict[str, Any], answer: str, reply: Reply) -> dict[str, Any]:
    """Words as tokens: enough to see that counts arrive."""
    prompt = sum(len(_text(message.get("content")).split()) for message in request.get("messages", []))
    completion = len(answer.split())
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return counts | (reply.usage or {})


def _error(status: int, message: str, code: str | None = None) -> bytes:
    kind = _ERROR_TYPES.get(status, "server_error")
    return json.dumps({"error": {"message": message, "type": kind, "code": code or kind}}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dspool.testing.lm_server", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--token-interval", type=float, default=0.0, help="seconds between streamed tokens")
    parser.add_argument("--api-key", default=None, help="refuse any other key")
    options = parser.parse_args()
    server = LMServer(
        host=options.host,
        port=options.port,
        latency_s=options.latency,
        token_interval_s=options.token_interval,
        api_key=options.api_key,
    )

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server._ready.is_set() and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if not task.done():
            print(f"listening on {server.url}", flush=True)
        await task

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


if __name__ == "__main__":
    main()
