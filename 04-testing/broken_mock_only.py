"""
A mocked client counts three requests, and the server is sent nine.

Run:   python broken_mock_only.py
Next:  python fixed_mock_only.py
Real:  https://github.com/BerriAI/litellm/pull/7130
"""

import contextlib
from unittest.mock import AsyncMock, Mock

from openai import APIError, AsyncOpenAI

from racelab import Fault, LocalServer, local_server, start, table, verdict

DOWN = Fault("503", probability=1, retry_after=0.01)  # every request is refused
TRIES = 3  # a question may cost so many requests, and no more
QUESTION = "What could go wrong?"


async def research(question: str, client: AsyncOpenAI) -> str:
    """The code under test: it tries three times."""
    messages = [{"role": "user", "content": question}]
    for _ in range(TRIES):
        with contextlib.suppress(APIError):
            answer = await client.chat.completions.create(
                model="gpt-5.4-mini", messages=messages
            )
            return answer.choices[0].message.content or ""
    return "no answer"


def openai_client(server: LocalServer) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.base_url, api_key=server.api_key)


async def requests_in_the_test(server: LocalServer) -> int:
    """How many requests the test counts for one question, while all of them fail."""
    client = Mock()
    client.chat.completions.create = create = AsyncMock()
    create.side_effect = APIError("503", Mock(), body=None)
    await research(QUESTION, client)
    # Calls of a mock. The requests are made further down, in the real client.
    return create.await_count


async def requests_in_production(server: LocalServer) -> int:
    server.reset()
    async with openai_client(server) as client:
        await research(QUESTION, client)
    return server.stats().received


async def main() -> int:
    with local_server(faults=(DOWN,)) as server:
        seen = await requests_in_the_test(server)
        sent = await requests_in_production(server)
    says = "passes" if seen <= TRIES else "fails"
    print(table(("requests in the test", seen), ("requests in production", sent)))
    print(f"The test allows {TRIES} requests and {says}.")
    return verdict(seen == sent, f"the test saw {seen} of {sent} requests")


if __name__ == "__main__":
    start(main)
