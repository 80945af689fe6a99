"""
Two runs have a message list each, and the API answers both.

Run:   python fixed_shared_history.py
Next:  python broken_shared_agent.py
Real:  https://github.com/pydantic/pydantic-ai/issues/562
"""

import asyncio

from racelab import Chat, Message, Refused, Timeline, open_model, start, verdict

CITIES = ("Oslo", "Accra")
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]


async def weather(city: str, batch: asyncio.Barrier) -> str:
    """The tool: it looks up both cities in one go, so each run waits for the other."""
    await batch.wait()
    return f"12 degrees and rain in {city}"


async def answer(
    city: str,
    history: list[Message],
    batch: asyncio.Barrier,
    chat: Chat,
    timeline: Timeline,
) -> str | None:
    """One run: a question, the model's tool call, the tool's result, the answer."""
    history.append({"role": "user", "content": f"What is the weather in {city}?"})
    call = await chat(history, tools=TOOLS, tool_choice="required")
    history.append(call)
    timeline.mark(city, f"#{len(history)} tool call")
    result = await weather(city, batch)  # the other run appends to its own
    call_id = call["tool_calls"][0]["id"]
    history.append({"role": "tool", "tool_call_id": call_id, "content": result})
    timeline.mark(city, f"#{len(history)} tool result")
    try:
        reply = await chat(history)
    except Refused as refusal:
        timeline.mark(city, f"HTTP {refusal.status}")
        return None
    history.append(reply)
    timeline.mark(city, f"#{len(history)} answer")
    return str(reply["content"])


async def run(chat: Chat, timeline: Timeline) -> tuple[list[str | None], list[Message]]:
    """Let both runs go at the same time; give their answers and the whole history."""
    batch = asyncio.Barrier(len(CITIES))
    histories: dict[str, list[Message]] = {city: [] for city in CITIES}
    runs = (answer(city, histories[city], batch, chat, timeline) for city in CITIES)
    answers = await asyncio.gather(*runs)
    # Merged at the end, one run after the other: each tool call keeps its result.
    return answers, [message for city in CITIES for message in histories[city]]


async def main() -> int:
    timeline = Timeline(*CITIES)
    async with open_model() as model:
        answers, _ = await run(model.chat, timeline)
    print(timeline)
    got, wanted = len(answers) - answers.count(None), len(CITIES)
    return verdict(got == wanted, f"{got} of {wanted} runs got an answer")


if __name__ == "__main__":
    start(main)
