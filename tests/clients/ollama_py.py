"""The client `ollama` from PyPI."""

import base64
import hashlib
import os
import tempfile

import ollama
from transcript import PNG, SCHEMA, cancel, main, many, once, step

OPTIONS = {"num_predict": 6, "seed": 1, "temperature": 0}
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


def get_weather(city: str) -> str:
    """Says what the weather is like.

    Args:
      city: Where.
    """
    return f"sunny in {city}"


async def transcript(kind, client, model):
    async def ask(name, call):
        await step(f"{kind} {name}", call)

    await ask("list", client.list)
    await ask("show", lambda: client.show(model))
    await ask("generate", lambda: client.generate(model, "Why is the sky blue?", options=OPTIONS))
    await ask("generate, streamed", lambda: client.generate(model, "Why?", options=OPTIONS, stream=True))
    await ask("generate, raw, with a system prompt", lambda: client.generate(
        model, "Why?", system="Be short.", suffix="", raw=True, options=OPTIONS, keep_alive="4m"))
    await ask("chat", lambda: client.chat(model, QUESTION, options=OPTIONS))
    await ask("chat, streamed", lambda: client.chat(model, QUESTION, options=OPTIONS, stream=True))
    await ask("ps", client.ps)

    image = [{"role": "user", "content": "What is this?", "images": [base64.b64decode(PNG)]}]
    await ask("chat with an image", lambda: client.chat(model, image, options=OPTIONS))
    await ask("chat with a large image", lambda: client.chat(
        model, [{"role": "user", "content": "And this?", "images": [b"\x89PNG" + bytes(3_000_000)]}], options=OPTIONS))
    await ask("generate with an image", lambda: client.generate(model, "What?", images=[PNG], options=OPTIONS))

    await ask("a tool", lambda: client.chat(model, QUESTION, tools=[get_weather], options=OPTIONS))
    await ask("a tool, streamed", lambda: client.chat(model, QUESTION, tools=[get_weather], options=OPTIONS, stream=True))
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    called = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]},
              {"role": "tool", "tool_name": "get_weather", "content": get_weather("Paris")}]
    await ask("a tool's answer", lambda: client.chat(model, called, tools=[get_weather], options=OPTIONS))

    await ask("JSON", lambda: client.generate(model, "Name a city, as JSON.", format="json", options=OPTIONS))
    await ask("a schema", lambda: client.chat(model, QUESTION, format=SCHEMA, options=OPTIONS))
    await ask("a schema, streamed", lambda: client.chat(model, QUESTION, format=SCHEMA, options=OPTIONS, stream=True))

    await ask("embed", lambda: client.embed(model, "one"))
    await ask("embed several", lambda: client.embed(model, ["one", "two", "three"]))
    await ask("embeddings", lambda: client.embeddings(model, "one"))

    await ask("generate, unknown", lambda: client.generate("no-such-model", "x"))
    await ask("generate, unknown, streamed", lambda: client.generate("no-such-model", "x", stream=True))
    await ask("chat, unknown", lambda: client.chat("no-such-model", QUESTION))
    await ask("show, unknown", lambda: client.show("no-such-model"))
    await ask("embed, unknown", lambda: client.embed("no-such-model", "x"))
    await ask("embeddings, unknown", lambda: client.embeddings("no-such-model", "x"))
    await ask("a bad name", lambda: client.generate("a b", "x"))
    await ask("a route of a later Ollama", lambda: client.systemone(
        model, [], {"q": {"type": "noul", "instructions": "Is it?"}}))


async def ask(kind, client, model):
    await step(f"{kind} chat", lambda: client.chat(model, QUESTION, options=OPTIONS))
    await step(f"{kind} chat, streamed", lambda: client.chat(model, QUESTION, options=OPTIONS, stream=True))
    await step(f"{kind} list", client.list)


async def manage(kind, client, model):
    """Changes models, and leaves them as they were."""
    async def ask(name, call):
        await step(f"{kind} {name}", call)

    if os.environ.get("PULL"):
        await ask("pull", lambda: client.pull("pulled"))
        await ask("pull with progress", lambda: client.pull("pulled", stream=True))
        await ask("delete what was pulled", lambda: client.delete("pulled"))
    await ask("copy", lambda: client.copy(model, "copied"))
    await ask("chat with the copy", lambda: client.chat("copied", QUESTION, options=OPTIONS))
    await ask("delete", lambda: client.delete("copied"))
    await ask("delete what is gone", lambda: client.delete("copied"))
    await ask("copy what is not there", lambda: client.copy("no-such-model", "copied"))
    with tempfile.NamedTemporaryFile() as small, tempfile.NamedTemporaryFile() as large:
        small.write(kind.encode())
        small.flush()
        await ask("upload", lambda: client.create_blob(small.name))
        await ask("upload what is there", lambda: client.create_blob(small.name))
        large.write(os.urandom(20_000_000))
        large.flush()
        await step(f"{kind} large upload", lambda: uploaded(client, large.name))
        # What a real Ollama shall make a model of has been uploaded before, by its own command.
        model_digest = digest(os.environ.get("GGUF", large.name))
    await ask("create", lambda: client.create("made", files={"model.gguf": model_digest}))
    await ask("chat with what was made", lambda: client.chat("made", QUESTION, options=OPTIONS))
    await ask("delete what was made", lambda: client.delete("made"))
    await ask("create, streamed", lambda: client.create("made", from_=model, system="Be short.", stream=True))
    await ask("delete it again", lambda: client.delete("made"))
    await ask("create from nothing", lambda: client.create("made"))
    await ask("create from an absent blob", lambda: client.create("made", files={"x": "sha256:" + "0" * 64}))


async def change(kind, client, model):
    await step(f"{kind} copy", lambda: client.copy(model, "copied"))
    await step(f"{kind} pull with progress", lambda: client.pull("pulled", stream=True))
    await step(f"{kind} delete", lambda: client.delete("no-such-model"))


async def uploaded(client, path):
    """Whether the client says that it uploaded what it should have; the name of it is another each time."""
    return await once(client.create_blob(path)) == digest(path)


def digest(path):
    with open(path, "rb") as content:
        return "sha256:" + hashlib.file_digest(content, "sha256").hexdigest()


async def stop(kind, client, model):
    await cancel(kind, lambda: client.chat(model, QUESTION, stream=True))


async def crowd(kind, client, model):
    await many(lambda: client.chat(model, QUESTION, options=OPTIONS))


def chosen():
    """The node that the environment chooses, if any."""
    return {"headers": {"ollana-peer": os.environ["PEER"]}} if "PEER" in os.environ else {}


main(
    {"transcript": transcript, "manage": manage, "ask": ask, "change": change, "cancel": stop, "many": crowd},
    lambda url: ollama.Client(url, **chosen()),
    lambda url: ollama.AsyncClient(url, **chosen()),
)
