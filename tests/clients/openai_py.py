"""The client `openai` from PyPI."""

import time

import openai
from transcript import PNG, SCHEMA, cancel, main, many, once, step

FEW = {"max_tokens": 6, "seed": 1, "temperature": 0}
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
TOOL = {"type": "function", "function": {
    "name": "get_weather",
    "description": "Says what the weather is like.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}}


async def transcript(kind, client, model):
    async def ask(name, call):
        await step(f"{kind} {name}", call)

    chat = client.chat.completions.create

    async def models():
        return (await once(client.models.list())).data

    await ask("models", models)
    await ask("model", lambda: client.models.retrieve(model))
    await ask("chat", lambda: chat(model=model, messages=QUESTION, **FEW))
    await ask("chat, streamed", lambda: chat(model=model, messages=QUESTION, stream=True, **FEW))
    await ask("chat, streamed with usage", lambda: chat(
        model=model, messages=QUESTION, stream=True, stream_options={"include_usage": True}, **FEW))
    await ask("completion", lambda: client.completions.create(model=model, prompt="Why?", **FEW))
    await ask("completion, streamed", lambda: client.completions.create(model=model, prompt="Why?", stream=True, **FEW))
    respond = client.responses.create
    await ask("response", lambda: respond(model=model, input="Why?", max_output_tokens=6, temperature=0))
    await ask("response, streamed", lambda: respond(
        model=model, input="Why?", max_output_tokens=6, temperature=0, stream=True))

    url = {"url": f"data:image/png;base64,{PNG}"}
    image = [{"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": url}]}]
    await ask("chat with an image", lambda: chat(model=model, messages=image, **FEW))
    await ask("a tool", lambda: chat(model=model, messages=QUESTION, tools=[TOOL], **FEW))
    await ask("a tool, streamed", lambda: chat(model=model, messages=QUESTION, tools=[TOOL], stream=True, **FEW))
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    called = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]},
              {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
    await ask("a tool's answer", lambda: chat(model=model, messages=called, tools=[TOOL], **FEW))
    await ask("JSON", lambda: chat(model=model, messages=QUESTION, response_format={"type": "json_object"}, **FEW))
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    await ask("a schema", lambda: chat(model=model, messages=QUESTION, response_format=schema, **FEW))
    await ask("a schema, streamed", lambda: chat(
        model=model, messages=QUESTION, response_format=schema, stream=True, **FEW))

    embed = client.embeddings.create
    await ask("embeddings", lambda: embed(model=model, input=["one", "two"]))  # base64 on the way, unless told otherwise
    await ask("embeddings as numbers", lambda: embed(model=model, input="one", encoding_format="float"))
    await ask("embeddings in base64", lambda: embed(model=model, input="one", encoding_format="base64"))

    await ask("model, unknown", lambda: client.models.retrieve("no-such-model"))
    await ask("chat, unknown", lambda: chat(model="no-such-model", messages=QUESTION))
    await ask("chat, unknown, streamed", lambda: chat(model="no-such-model", messages=QUESTION, stream=True))
    await ask("response, unknown", lambda: respond(model="no-such-model", input="x"))
    await ask("embeddings, unknown", lambda: embed(model="no-such-model", input="x"))
    await ask("chat without messages", lambda: chat(model=model, messages=[]))
    await ask("a route that Ollama does not have", lambda: client.moderations.create(model=model, input="x"))


async def ask(kind, client, model):
    chat = client.with_options(max_retries=0).chat.completions.create
    await step(f"{kind} chat", lambda: chat(model=model, messages=QUESTION, **FEW))
    await step(f"{kind} chat, streamed", lambda: chat(model=model, messages=QUESTION, stream=True, **FEW))


async def retry(kind, client, model):
    """One more try: how long does the client wait for it?"""
    chat = client.with_options(max_retries=1).chat.completions.create
    begun = time.monotonic()
    await step(f"{kind} chat", lambda: chat(model=model, messages=QUESTION))
    waited = time.monotonic() - begun

    async def seconds():
        return waited

    await step(f"{kind} seconds", seconds)


async def crowd(kind, client, model):
    chat = client.with_options(max_retries=0).chat.completions.create
    await many(lambda: chat(model=model, messages=QUESTION, **FEW))


async def stop(kind, client, model):
    await cancel(kind, lambda: client.chat.completions.create(model=model, messages=QUESTION, stream=True))


main(
    {"transcript": transcript, "ask": ask, "retry": retry, "cancel": stop, "many": crowd},
    lambda url: openai.OpenAI(base_url=f"{url}/v1", api_key="ollama"),
    lambda url: openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="ollama"),
)
