"""The client `anthropic` from PyPI."""

import anthropic
from transcript import PNG, cancel, main, step

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
TOOL = {
    "name": "get_weather",
    "description": "Says what the weather is like.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


async def transcript(kind, client, model):
    async def ask(name, **request):
        request = {"model": model, "max_tokens": 6, "temperature": 0, "messages": QUESTION, **request}
        await step(f"{kind} {name}", lambda: client.messages.create(**request))

    await ask("message")
    await ask("message, streamed", stream=True)
    await ask("with a system prompt", system="Be short.")
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    await ask("with an image", messages=[
        {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]}])
    await ask("a tool", tools=[TOOL])
    await ask("a tool, streamed", tools=[TOOL], stream=True)
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
    await ask("a tool's answer", tools=[TOOL], messages=[
        *QUESTION, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}])
    await ask("unknown", model="no-such-model")
    await ask("unknown, streamed", model="no-such-model", stream=True)
    await ask("without messages", messages=[])
    await step(f"{kind} a route that Ollama may not have", lambda: client.messages.count_tokens(
        model=model, messages=QUESTION))


async def ask(kind, client, model):
    create = client.with_options(max_retries=0).messages.create
    await step(f"{kind} message", lambda: create(model=model, max_tokens=12, messages=QUESTION))
    await step(f"{kind} message, streamed", lambda: create(model=model, max_tokens=12, messages=QUESTION, stream=True))


async def stop(kind, client, model):
    await cancel(kind, lambda: client.messages.create(model=model, max_tokens=100_000, messages=QUESTION, stream=True))


main(
    {"transcript": transcript, "ask": ask, "cancel": stop},
    lambda url: anthropic.Anthropic(base_url=url, api_key="ollama"),
    lambda url: anthropic.AsyncAnthropic(base_url=url, api_key="ollama"),
)
