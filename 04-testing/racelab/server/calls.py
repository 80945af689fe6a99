"""One chat request, from its arrival to the last byte of its answer."""

import asyncio
import json
import socket
import struct
import sys
import time
from typing import Any

from aiohttp import web

from racelab.server.answers import answer_to, latency_of
from racelab.server.buckets import Limits
from racelab.server.completions import Answer
from racelab.server.errors import Refusal, key_of, let_go, struck, wrong_method
from racelab.server.metrics import Run
from racelab.server.parameters import chat_request
from racelab.server.wire import headers_of, refused, whole_body

SERVER_SENT_EVENTS = "text/event-stream; charset=utf-8"
SLOW = 10  # times as long, under the fault of that name
NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Call:
    """One request to /v1/chat/completions. `made` is the share of its answer that
    exists already: it is billed even if the client has gone."""

    def __init__(self, request: web.BaseRequest, run: Run) -> None:
        self.arrived = time.perf_counter()
        self.request, self.run = request, run
        self.settings, self.ledger = run.settings, run.ledger
        self.number = run.ledger.arrive()
        self.limits: Limits | None = None
        self.body: dict[str, Any] = {}
        self.made = 0.0

    async def respond(self) -> web.StreamResponse:
        try:
            answer = await self.accept()
            fault = self.strike(answer.question)
        except Refusal as refusal:
            self.ledger.refused[str(refusal.status)] += 1
            return refused(refusal, self.headers())
        except asyncio.CancelledError:  # the client has gone before it had said all
            self.ledger.abandoned += 1
            raise
        self.ledger.start()
        try:
            return await self.work(answer, fault)
        except asyncio.CancelledError:  # the client has gone
            self.abandon(answer, fault)
            raise
        except ConnectionError:  # it went while we wrote
            self.abandon(answer, fault)
            return web.Response()
        finally:
            self.ledger.finish()

    async def accept(self) -> Answer:
        """The answer to give, or a Refusal."""
        request = self.request
        key = key_of(request.headers.get("authorization"), self.settings.api_key)
        self.limits = self.run.limits_of(key)
        try:
            if request.method != "POST":
                raise wrong_method("POST")
            self.body = chat_request(await whole_body(request), self.settings)
            answer = answer_to(self.body, self.settings.seed)
        except Refusal:
            self.limits.charge_refusal()
            raise
        tokens = answer.prompt_tokens + most_tokens(self.body, answer)
        self.limits.admit(tokens, answer.model, time.perf_counter())
        return answer

    def strike(self, question: str) -> str:
        """The kind of fault that hits this call, or ""; those with a status raise."""
        fault = self.settings.fault_for(self.number, question)
        if fault is None:
            return ""
        self.ledger.faults[fault.kind] += 1
        if fault.kind in ("500", "503", "429"):
            raise struck(fault.kind, fault.retry_after)
        return fault.kind

    async def work(self, answer: Answer, fault: str) -> web.StreamResponse:
        """Takes as long as a model would, then answers."""
        if fault == "hang":
            await self.run.over.wait()
            return refused(let_go(), self.headers())
        if fault == "reset":
            return self.break_off(reset=True)
        slower = SLOW if fault == "slow" else 1
        if self.body.get("stream"):
            return await self.stream(answer, fault, slower)
        self.made = 1.0
        await asyncio.sleep(slower * latency_of(answer.question, self.settings))
        whole = json.dumps(answer.body(self.number, int(time.time()))).encode()
        half = whole[: len(whole) // 2]
        headers = self.headers()
        if fault == "cut":
            headers["content-length"] = str(len(whole))
            cut = web.StreamResponse(headers=headers)
            await cut.prepare(self.request)
            await cut.write(half)
            self.ledger.bill(answer)
            return self.break_off()
        body = half if fault == "malformed" else whole
        response = web.Response(body=body, headers=headers)
        await response.prepare(self.request)
        await response.write_eof()
        self.deliver(answer, fault)
        return response

    async def stream(
        self, answer: Answer, fault: str, slower: int
    ) -> web.StreamResponse:
        await asyncio.sleep(latency_of(answer.question, self.settings))
        response = web.StreamResponse(headers=self.headers(SERVER_SENT_EVENTS))
        await response.prepare(self.request)
        events = self.events(answer)
        for position, event in enumerate(events):
            if position:
                await asyncio.sleep(slower * self.settings.chunk_delay)
            if position == len(events) // 2:
                if fault == "cut":
                    self.ledger.bill(answer, self.made)
                    return self.break_off()
                if fault == "malformed":
                    event = event[: len(event) // 2]
            await response.write(b"data: %b\n\n" % event)
            self.ledger.chunks_sent += 1
            self.made = (position + 1) / len(events)
        if self.wants_usage():
            last = {**self.frame(answer), "choices": [], "usage": answer.usage()}
            await response.write(b"data: %b\n\n" % json.dumps(last).encode())
        await response.write_eof(b"data: [DONE]\n\n")
        self.deliver(answer, fault)
        return response

    def events(self, answer: Answer) -> list[bytes]:
        frame = self.frame(answer)
        if self.wants_usage():
            frame["usage"] = None
        return [
            json.dumps({**frame, "choices": [choice]}).encode()
            for choice in answer.chunks()
        ]

    def frame(self, answer: Answer) -> dict[str, Any]:
        kind = "chat.completion.chunk"
        return answer.frame(kind, self.number, int(time.time()))

    def wants_usage(self) -> bool:
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    def deliver(self, answer: Answer, fault: str) -> None:
        """A malformed answer is paid for, but it is no answer."""
        self.ledger.bill(answer)
        if fault != "malformed":
            self.ledger.answered += 1
            self.ledger.answers[answer.question] += 1

    def abandon(self, answer: Answer, fault: str) -> None:
        """A call that a fault has spoiled is the fault's; it cannot be abandoned."""
        if fault in ("", "slow"):
            self.ledger.abandoned += 1
        if fault != "hang":
            self.ledger.bill(answer, self.made)

    def break_off(self, reset: bool = False) -> web.StreamResponse:
        """Ends the connection: in good order, or with a reset (TCP RST).

        aiohttp finds it closed and drops the response that it is given.
        """
        transport = self.request.transport
        if transport is not None and reset:
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            transport.abort()
        elif transport is not None:
            transport.close()
        return web.Response()

    def headers(self, content_type: str = "application/json") -> dict[str, str]:
        now = time.perf_counter()
        headers = headers_of(now - self.arrived, content_type)
        if self.limits is not None:
            headers.update(self.limits.headers(now))
        return headers


def most_tokens(body: dict[str, Any], answer: Answer) -> int:
    """What the answer may take out of the token bucket, as asked for or as it is."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit * len(answer.choices) if limit else answer.completion_tokens
