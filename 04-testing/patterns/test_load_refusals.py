"""Load: what is over the limit is refused, and the server has counted each refusal.

A team that sends all at once against a rate limit loses most of its questions. The
client counts what it has seen, the server what it has done, and the two agree. Retries
bring back what was lost, for more requests: only the server sees how many.
"""

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from racelab import LocalServer, Settings, open_model
from racelab.pytest.load import LoadReport, put_load

pytestmark = pytest.mark.load

AGENTS = 40
BURST = 10  # so many are let through at once
TIGHT = Settings(latency=0.01, rpm=60, request_burst=BURST)  # then one a second
WIDE = Settings(latency=0.01, rpm=6000, request_burst=BURST, count_refused=False)


async def test_clients_and_server_count_the_same_refusals(
    model_server: LocalServer, load_report: LoadReport
) -> None:
    model_server.reset(TIGHT)
    async with open_model(model_server) as ask:
        load = await put_load(ask, AGENTS, calls=1)
    stats = model_server.stats()
    load_report.add("rate limit", load, stats)
    assert stats.refused == {"429": load.refused}
    assert load.answered == stats.answered >= BURST
    assert load.answered + load.refused == AGENTS == stats.received
    assert load.refused > 0


async def test_retries_lose_no_question_and_send_more(
    model_server: LocalServer, load_report: LoadReport
) -> None:
    model_server.reset(WIDE)
    plain = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    where = {"base_url": model_server.base_url, "api_key": model_server.api_key}
    async with AsyncOpenAI(**where, http_client=plain, max_retries=50) as client:

        async def ask(question: str) -> str:
            answer = await client.chat.completions.create(
                model="local", messages=[{"role": "user", "content": question}]
            )
            return answer.choices[0].message.content or ""

        load = await put_load(ask, AGENTS, calls=1)
    stats = model_server.stats()
    load_report.add("and retries", load, stats)
    assert load.answered == stats.answered == AGENTS
    assert set(stats.answers.values()) == {1}  # each question was answered once
    assert stats.received == AGENTS + sum(stats.refused.values())
