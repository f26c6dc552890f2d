// What the pages of this test do: /page?does=NAME&report=PORT[&target=URL] runs NAME below and reports what came of it.
const query = new URLSearchParams(location.search);
const target = query.get("target") ?? location.origin;
const report = (result) =>
  fetch(`http://${location.hostname}:${query.get("report")}/page/result`, {
    method: "POST",
    mode: "no-cors",
    body: JSON.stringify(result),
  });

const generate = JSON.stringify({ model: "m", prompt: "why", stream: false });
const json = { "content-type": "application/json" };
const simple = { "content-type": "text/plain" };

// What the page is let know of a request.
async function attempt(path, options) {
  try {
    const response = await fetch(target + path, options);
    return { type: response.type, status: response.status, text: await response.text() };
  } catch (error) {
    return { refused: error.name };
  }
}

async function chat(signal) {
  const body = JSON.stringify({ model: "m", messages: [{ role: "user", content: "why" }] });
  const response = await fetch(`${target}/api/chat`, { method: "POST", headers: json, body, signal });
  return [response, response.body.pipeThrough(new TextDecoderStream()).getReader()];
}

export const does = {
  // Reads an answer as it comes.
  async streams() {
    const [{ type, status }, reader] = await chat();
    const pieces = [];
    for (let piece; !(piece = await reader.read()).done; ) pieces.push({ at: performance.now(), text: piece.value });
    return { type, status, pieces };
  },

  // Reads some of it and gives up.
  async gives_up() {
    const given_up = new AbortController();
    const [, reader] = await chat(given_up.signal);
    for (let pieces = 0; pieces < 3; pieces += 1) await reader.read();
    given_up.abort();
    return (await reader.read().catch((error) => error)).name;
  },

  // Reads on for as long as there is a page.
  async reads_on() {
    const [, reader] = await chat();
    for (let pieces = 0; ; pieces += 1) {
      await reader.read();
      if (pieces === 3) report("it reads");
    }
  },

  // What programs in a browser send beyond the simplest.
  async preflighted() {
    const openai = { ...json, authorization: "Bearer ollama", "openai-beta": "x", "x-stainless-lang": "js" };
    const messages = [{ role: "user", content: "why" }];
    return {
      json: await attempt("/api/generate", { method: "POST", headers: json, body: generate }),
      openai: await attempt("/v1/chat/completions", {
        method: "POST",
        headers: openai,
        body: JSON.stringify({ model: "m", messages }),
      }),
      chosen: await attempt("/@gpu1/api/tags", {}),
      unheard_of: await attempt("/api/tags", { headers: { "x-unheard-of": "1" } }),
    };
  },

  // All the ways in which a page can ask for what it may not.
  async intrudes() {
    const post = { method: "POST", body: generate };
    const attempts = {
      get: await attempt("/api/tags", {}),
      preflighted: await attempt("/api/generate", { ...post, headers: json }),
      simple: await attempt("/api/generate", { ...post, headers: simple }),
      without_type: await attempt("/api/generate", post),
      unread: await attempt("/api/generate", { ...post, headers: simple, mode: "no-cors" }),
      deletes: await attempt("/api/delete", { method: "DELETE", body: '{"model":"m"}' }),
    };
    navigator.sendBeacon(`${target}/api/generate`, generate);
    attempts.socket = await new Promise((ended) => {
      const socket = new WebSocket(`${target.replace("http", "ws")}/api/generate`);
      socket.onopen = () => ended("open");
      socket.onerror = () => ended("refused");
    });
    attempts.form = await new Promise((ended) => {
      // As text/plain a form says `name=value`: a JSON object, if name and value are chosen well.
      document.body.innerHTML = `<iframe name="frame"></iframe>
        <form method="post" enctype="text/plain" target="frame"><input name='{"model":"m","prompt":"'></form>`;
      document.forms[0].action = `${target}/api/generate`;
      document.querySelector("input").value = '"}';
      document.querySelector("iframe").onload = () => ended("loaded");
      document.forms[0].submit();
    });
    return attempts;
  },

  // The same from a frame that has no origin at all.
  async intrudes_from_a_sandbox() {
    const tell = `fetch("${target}/api/tags").then(() => "let in", () => "refused").then((r) => parent.postMessage(r, "*"))`;
    return new Promise((told) => {
      addEventListener("message", (message) => told(message.data));
      document.body.innerHTML = `<iframe sandbox="allow-scripts"></iframe>`;
      document.querySelector("iframe").srcdoc = `<script>${tell}</script>`;
    });
  },

  // What a page may learn from the status page, and what it can do to it.
  async looks_at_the_status() {
    return {
      page: await attempt("/", {}),
      json: await attempt("/status.json", {}),
      peers: await attempt("/peers.json", {}),
      metrics: await attempt("/metrics", {}),
      simple: await attempt("/", { method: "POST", headers: simple, body: generate }),
      unread: await attempt("/", { method: "POST", mode: "no-cors", headers: simple, body: generate }),
    };
  },
};

report(await does[query.get("does")]().catch((error) => ({ threw: String(error) })));
