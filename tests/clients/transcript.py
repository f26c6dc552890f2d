"""What the Python scripts share. Each takes WHAT URL MODEL and prints a line of JSON for each step, so that two runs can
be compared, one that asks an Ollama and one that asks the mesh in front of it.

The synchronous and the asynchronous client of a package have the same methods, so one script drives both: `settle` waits
where there is something to wait for.
"""

import asyncio
import inspect
import json
import os
import sys

PNG = (  # one transparent pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "inhabitants": {"type": "integer"}},
    "required": ["city", "inhabitants"],
}


async def settle(value):
    """The result of a call, of either kind of client; a stream as the list of what came."""
    value = await once(value)
    if hasattr(value, "__anext__"):
        return [item async for item in value]
    return list(value) if hasattr(value, "__next__") else value


async def once(value):
    return await value if inspect.isawaitable(value) else value


def say(step, result):
    def plain(value):
        return value.model_dump(mode="json") if hasattr(value, "model_dump") else repr(value)

    print(json.dumps({"step": step, "result": result}, default=plain), flush=True)


async def step(name, call):
    """Says what came of a call; an exception as what a program sees of it."""
    try:
        say(name, await settle(call()))
    except Exception as error:
        response = getattr(error, "response", None)
        say(name, {
            "raised": f"{type(error).__module__.split('.')[0]}.{type(error).__name__}",
            "status": getattr(error, "status_code", None),
            "message": str(error),
            "body": getattr(error, "body", None),
            "retry_after": response.headers.get("retry-after") if response is not None else None,
        })


async def cancel(kind, begin):
    """Begins a stream, gives it up when told to, and stays: the end of a process would close its connections anyhow."""
    if kind == "sync":
        stream = begin()
        for _ in range(3):
            next(stream)
        say("begun", None)
        sys.stdin.readline()
        stream.close()
    else:
        task = asyncio.create_task(settle(begin()))
        say("begun", None)
        await asyncio.to_thread(sys.stdin.readline)
        task.cancel()
        await asyncio.wait([task])
    say("given up", None)
    await asyncio.to_thread(sys.stdin.readline)


async def many(call):
    """As many calls at once as the environment says, in tasks of one loop."""
    answers = await asyncio.gather(*(settle(call()) for _ in range(int(os.environ["MANY"]))), return_exceptions=True)
    failed = [repr(answer) for answer in answers if isinstance(answer, BaseException)]
    say("many", {"answered": len(answers) - len(failed), "failed": failed[:3]})


def main(actions, sync, asynchronous):
    """Runs what the first argument names with both clients, or with the one that a second part (`cancel-sync`) names."""
    what, url, model = sys.argv[1:4]
    what, _, only = what.partition("-")
    for kind, client in [("sync", sync), ("async", asynchronous)]:
        if only in ("", kind):
            asyncio.run(actions[what](kind, client(url), model))
