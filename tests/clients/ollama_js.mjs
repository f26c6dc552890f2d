// The client `ollama` from npm. As in transcript.py: WHAT URL MODEL, and a line of JSON for each step.
import { once } from "node:events";
import { createInterface } from "node:readline";
import { Ollama } from "ollama";

const [what, host, model] = process.argv.slice(-3);
const headers = process.env.PEER ? { "ollana-peer": process.env.PEER } : {};
const client = new Ollama({ host, headers });
const options = { num_predict: 6, seed: 1, temperature: 0 };
const messages = [{ role: "user", content: "Why is the sky blue?" }];
const png = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==",
  "base64",
);
const schema = {
  type: "object",
  properties: { city: { type: "string" }, inhabitants: { type: "integer" } },
  required: ["city", "inhabitants"],
};
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Says what the weather is like.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

const say = (step, result) => console.log(JSON.stringify({ step, result: result ?? null }));

// Says what came of a call, a stream as the list of what came, an error as what a program sees of it.
async function step(name, call) {
  try {
    let result = await call();
    if (result?.[Symbol.asyncIterator]) {
      const stream = result;
      result = [];
      for await (const item of stream) result.push(item);
    }
    say(name, result);
  } catch (error) {
    say(name, { raised: error.name, status: error.status_code, message: error.message });
  }
}

const actions = {
  async transcript() {
    await step("list", () => client.list());
    await step("version", () => client.version());
    await step("show", () => client.show({ model }));
    await step("generate", () => client.generate({ model, prompt: "Why?", options }));
    await step("generate, streamed", () => client.generate({ model, prompt: "Why?", options, stream: true }));
    await step("chat", () => client.chat({ model, messages, options }));
    await step("chat, streamed", () => client.chat({ model, messages, options, stream: true }));
    await step("ps", () => client.ps());
    const image = [{ role: "user", content: "What is this?", images: [png] }];
    await step("chat with an image", () => client.chat({ model, messages: image, options }));
    await step("generate with an image", () => client.generate({ model, prompt: "What?", images: [png], options }));
    await step("a tool", () => client.chat({ model, messages, tools: [tool], options }));
    await step("a tool, streamed", () => client.chat({ model, messages, tools: [tool], options, stream: true }));
    await step("JSON", () => client.generate({ model, prompt: "Name a city, as JSON.", format: "json", options }));
    await step("a schema", () => client.chat({ model, messages, format: schema, options }));
    await step("a schema, streamed", () => client.chat({ model, messages, format: schema, options, stream: true }));
    await step("embed", () => client.embed({ model, input: ["one", "two"] }));
    await step("embeddings", () => client.embeddings({ model, prompt: "one" }));
    await step("chat, unknown", () => client.chat({ model: "no-such-model", messages }));
    await step("chat, unknown, streamed", () => client.chat({ model: "no-such-model", messages, stream: true }));
    await step("show, unknown", () => client.show({ model: "no-such-model" }));
  },

  async ask() {
    await step("chat", () => client.chat({ model, messages, options }));
    await step("chat, streamed", () => client.chat({ model, messages, options, stream: true }));
    await step("list", () => client.list());
  },

  // As many calls at once as the environment says.
  async many() {
    const calls = Array.from({ length: Number(process.env.MANY) }, () => client.chat({ model, messages, options }));
    const answers = await Promise.allSettled(calls);
    const failed = answers.filter(({ status }) => status === "rejected").map(({ reason }) => String(reason));
    say("many", { answered: answers.length - failed.length, failed: failed.slice(0, 3) });
  },

  // Changes models, and leaves them as they were.
  async manage() {
    if (process.env.PULL) {
      await step("pull", () => client.pull({ model: "pulled" }));
      await step("pull with progress", () => client.pull({ model: "pulled", stream: true }));
      await step("delete what was pulled", () => client.delete({ model: "pulled" }));
    }
    await step("copy", () => client.copy({ source: model, destination: "copied" }));
    await step("chat with the copy", () => client.chat({ model: "copied", messages, options }));
    await step("delete", () => client.delete({ model: "copied" }));
    await step("delete what is gone", () => client.delete({ model: "copied" }));
    await step("create", () => client.create({ model: "made", from: model, system: "Be short." }));
    await step("create, streamed", () => client.create({ model: "made", from: model, stream: true }));
    await step("chat with what was made", () => client.chat({ model: "made", messages, options }));
    await step("delete what was made", () => client.delete({ model: "made" }));
  },

  async change() {
    await step("copy", () => client.copy({ source: model, destination: "copied" }));
    await step("pull with progress", () => client.pull({ model: "pulled", stream: true }));
  },

  async cancel() {
    const told = createInterface({ input: process.stdin });
    const stream = await client.chat({ model, messages, stream: true });
    let pieces = 0;
    const reading = (async () => {
      for await (const _ of stream) if (++pieces === 3) say("begun");
    })();
    await once(told, "line");
    client.abort();
    const ended = await reading.then(() => "as if complete", (error) => error.name);
    say("given up", ended);
    await once(told, "line");
    process.exit();
  },
};

await actions[what.split("-")[0]]();
