"""One chat request, from its arrival to the last byte of its answer."""

import asyncio
import json
import socket
import struct
import sys
import time
from typing import Any

from aiohttp import web

from racelab.server import errors
from racelab.server.answers import answer_to, latency_of
from racelab.server.buckets import KeyLimits
from racelab.server.chat_requests import chat_request, part, token_limit
from racelab.server.completions import Completion
from racelab.server.errors import ApiError
from racelab.server.http_body import error_response, headers_of, whole_body
from racelab.server.metrics import Epoch

SERVER_SENT_EVENTS = "text/event-stream; charset=utf-8"
SLOW = 10  # times as long, under the fault of that name
NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class ChatCall:
    """One request to /v1/chat/completions.

    `made` is the share of its answer that exists already, which is billed even if the
    client has gone.
    """

    def __init__(self, request: web.BaseRequest, epoch: Epoch) -> None:
        self.request, self.epoch = request, epoch
        self.settings, self.metrics = epoch.settings, epoch.metrics
        self.number = epoch.metrics.arrive()
        self.limits: KeyLimits | None = None
        self.body: dict[str, Any] = {}
        self.made = 0.0

    async def respond(self) -> web.StreamResponse:
        try:
            answer = await self.accept()
            fault = self.inject(answer.question)
        except ApiError as error:
            self.metrics.refused[str(error.status)] += 1
            return error_response(error, self.headers())
        except asyncio.CancelledError:  # the client has gone before it had said all
            self.metrics.abandoned += 1
            raise
        self.metrics.start()
        try:
            return await self.work(answer, fault)
        except asyncio.CancelledError:  # the client has gone
            self.abandon(answer, fault)
            raise
        except ConnectionError:  # it went while we wrote
            self.abandon(answer, fault)
            return web.Response()
        finally:
            self.metrics.finish()

    async def accept(self) -> Completion:
        """Return the answer to send, or raise an `ApiError`."""
        given = self.request.headers.get("authorization")
        key = errors.key_of(given, self.settings.api_key)
        self.limits = self.epoch.limits_of(key)
        try:
            self.body = chat_request(await whole_body(self.request), self.settings)
            answer = answer_to(self.body, self.settings.seed)
        except ApiError:
            self.limits.charge_refusal()
            raise
        limit = token_limit(self.body)
        most = limit * len(answer.choices) if limit else answer.completion_tokens
        tokens = answer.prompt_tokens + most
        self.limits.admit(tokens, answer.model, time.perf_counter())
        return answer

    def inject(self, question: str) -> str:
        """Return the kind of fault that hits this call, or "". Raise a status."""
        fault = self.settings.fault_for(self.number, question)
        if fault is None:
            return ""
        self.metrics.faults[fault.kind] += 1
        if fault.kind in ("500", "503", "429"):
            raise errors.injected_error(fault.kind, fault.retry_after)
        return fault.kind

    async def work(self, answer: Completion, fault: str) -> web.StreamResponse:
        """Take as long as a model would, then answer."""
        if fault == "hang":
            await self.epoch.over.wait()
            error = ApiError(503, "The local server was reset.")
            error.headers["x-should-retry"] = "false"
            return error_response(error, self.headers())
        if fault == "reset":
            return self.break_off(reset=True)
        streamed = self.body.get("stream") is True
        slower = SLOW if fault == "slow" else 1
        self.made = 0.0 if streamed else 1.0
        await asyncio.sleep(slower * latency_of(answer.question, self.settings))
        whole = json.dumps(answer.body(self.number, int(time.time()))).encode()
        end = whole[: len(whole) // 2] if fault in ("cut", "malformed") else whole
        headers = self.headers(SERVER_SENT_EVENTS if streamed else "application/json")
        if not streamed:
            headers["content-length"] = str(len(whole if fault == "cut" else end))
        response = web.StreamResponse(headers=headers)
        await response.prepare(self.request)
        if streamed:
            end = await self.stream(response, answer, fault, slower)
        await (response.write(end) if fault == "cut" else response.write_eof(end))
        self.metrics.bill(answer, self.made)
        if fault == "cut":
            return self.break_off()
        if fault != "malformed":
            self.metrics.answer(answer.question)
        return response

    async def stream(
        self, response: web.StreamResponse, answer: Completion, fault: str, slower: int
    ) -> bytes:
        """Send the chunks. Return the end of the stream, which is still to be sent."""
        frame = answer.frame("chat.completion.chunk", self.number, int(time.time()))
        options = part(self.body, "stream_options", dict)
        usage = {"usage": None} if options.get("include_usage") is True else {}
        chunks = list(answer.chunks())
        for position, chunk in enumerate(chunks):
            if position:
                await asyncio.sleep(slower * self.settings.chunk_delay)
            event = json.dumps({**frame, **usage, "choices": [chunk]}).encode()
            if position == len(chunks) // 2 and fault == "cut":
                return b""
            if position == len(chunks) // 2 and fault == "malformed":
                event = event[: len(event) // 2]
            await response.write(b"data: %b\n\n" % event)
            self.metrics.chunks_sent += 1
            self.made = (position + 1) / len(chunks)
        end = b"data: [DONE]\n\n"
        if usage:
            last = {**frame, "choices": [], "usage": answer.usage()}
            end = b"data: %b\n\n" % json.dumps(last).encode() + end
        return end

    def abandon(self, answer: Completion, fault: str) -> None:
        """Count a client that has gone, unless a fault has spoiled its call already."""
        if fault in ("", "slow"):
            self.metrics.abandoned += 1
        if fault != "hang":
            self.metrics.bill(answer, self.made)

    def break_off(self, reset: bool = False) -> web.StreamResponse:
        """End the connection: in good order, or with a reset (TCP RST).

        aiohttp finds it closed and drops the response that it is given.
        """
        if (transport := self.request.transport) is not None:
            if reset:
                connection = transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            transport.abort() if reset else transport.close()
        return web.Response()

    def headers(self, content_type: str = "application/json") -> dict[str, str]:
        headers = headers_of(content_type)
        if self.limits is not None:
            headers.update(self.limits.headers(time.perf_counter()))
        return headers
