// The conversation lies here alone: every question is sent with all turns before it, pictures included.

const $ = (id) => document.getElementById(id);
const turns = []; // {role, content} as OpenAI's protocol has them
let attached = []; // {url, figure}
let running = null; // AbortController of the answer that is on its way
let model = "";

const element = (name, props = {}, ...children) => {
  const made = Object.assign(document.createElement(name), props);
  made.append(...children);
  return made;
};

const headers = () => {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
};

const say = (text, bad = false) => {
  $("status").textContent = text;
  $("status").classList.toggle("error", bad);
};

const told = async (response) => {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `status ${response.status}`;
};

async function begin() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) return say(await told(response), true);
    model = (await response.json()).data[0].id;
    $("model").textContent = model;
    say("");
  } catch {
    say("the server does not answer", true);
  }
}

const read = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

async function attach(files) {
  for (const file of files) {
    try {
      const url = await read(file);
      const response = await fetch("v1/tiles", { method: "POST", headers: headers(), body: JSON.stringify({ url }) });
      if (!response.ok) {
        say(`${file.name}: ${await told(response)}`, true);
        continue;
      }
      const { tiles, tokens } = await response.json();
      const drop = element("button", { type: "button", textContent: "Remove", title: `Removes ${file.name}` });
      const figure = picture(url, file.name, tiles, tokens);
      figure.append(drop);
      const entry = { url, figure };
      drop.onclick = () => {
        attached = attached.filter((other) => other !== entry);
        figure.remove();
        $("question").focus();
      };
      attached.push(entry);
      $("attached").append(figure);
      say("");
    } catch {
      say(`${file.name} cannot be read`, true);
    }
  }
}

function picture(url, name, tiles, tokens) {
  const seen = element("div", { className: "tiles", title: "the tiles that the model sees" });
  tiles.forEach((tile, number) => seen.append(element("img", { src: tile, alt: `tile ${number + 1} of ${name}` })));
  const count = `${tiles.length} ${tiles.length === 1 ? "tile" : "tiles"}, ${tiles.length * tokens} tokens`;
  return element("figure", {}, element("img", { src: url, alt: name, className: "picture" }), seen, count);
}

function show(role, text = "", figures = []) {
  const words = element("p", { textContent: text });
  const turn = element("article", { className: `turn ${role}` });
  if (figures.length) turn.append(element("div", { className: "pictures" }, ...figures));
  turn.append(words);
  $("talk").append(turn);
  turn.scrollIntoView({ block: "end" });
  return { turn, words };
}

function settings() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const names = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];
  return Object.fromEntries(names.map((name) => [name, number(name)]).filter(([, value]) => value !== undefined));
}

async function ask() {
  const question = $("question").value.trim();
  if (running || (!question && !attached.length)) return;
  const content = attached.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  if (question) content.push({ type: "text", text: question });
  const figures = attached.map(({ figure }) => (figure.querySelector("button")?.remove(), figure));
  const mine = show("user", question, figures);
  turns.push({ role: "user", content });
  const sent = attached;
  attached = [];
  $("question").value = "";
  const { turn, words } = show("assistant", "");
  let answer = "";
  let finish = null;
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  say("…");
  const began = performance.now();
  try {
    const system = $("system").value.trim();
    const messages = system ? [{ role: "system", content: system }, ...turns] : turns;
    const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...settings() };
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify(body),
      signal: running.signal,
    });
    if (!response.ok) throw new Error(await told(response));
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice?.delta.content) {
        answer += choice.delta.content;
        words.textContent = answer;
        turn.scrollIntoView({ block: "end" });
      }
      finish = choice?.finish_reason ?? finish;
      if (event.usage) {
        const seconds = (performance.now() - began) / 1000;
        const { prompt_tokens, completion_tokens, prompt_tokens_details } = event.usage;
        const known = prompt_tokens_details.cached_tokens;
        say(`${prompt_tokens} tokens read (${known} known), ${completion_tokens} written, ${seconds.toFixed(1)} s`);
      }
    }
    if (finish === "length") turn.append(element("p", { className: "note", textContent: "(cut at the most tokens)" }));
  } catch (error) {
    if (error.name === "AbortError") {
      turn.append(element("p", { className: "note", textContent: "(stopped)" }));
      say("stopped");
    } else {
      say(error.message, true);
      if (!answer) {
        // Nothing was answered: the question goes back to where it can be changed.
        turns.pop();
        turn.remove();
        mine.turn.remove();
        $("question").value = question;
        for (const { url, figure } of sent) reattach(url, figure);
      }
    }
  } finally {
    running = null;
    $("send").hidden = false;
    $("stop").hidden = true;
    if (turns.at(-1)?.role === "user") {
      if (answer) turns.push({ role: "assistant", content: answer });
      else if (turn.isConnected) turns.pop();
    }
    $("question").focus();
  }
}

function reattach(url, figure) {
  const entry = { url, figure };
  const drop = element("button", { type: "button", textContent: "Remove" });
  drop.onclick = () => {
    attached = attached.filter((other) => other !== entry);
    figure.remove();
  };
  figure.append(drop);
  attached.push(entry);
  $("attached").append(figure);
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

document.querySelector("#settings form").onsubmit = (event) => event.preventDefault();
$("ask").onsubmit = (event) => {
  event.preventDefault();
  ask();
};
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
};
$("stop").onclick = () => running?.abort();
document.onkeydown = (event) => {
  if (event.key === "Escape") running?.abort();
};
$("new").onclick = () => {
  running?.abort();
  turns.length = 0;
  $("talk").replaceChildren();
  say("");
  $("question").focus();
};
$("pick").onkeydown = (event) => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    $("files").click();
  }
};
$("files").onchange = async () => {
  await attach([...$("files").files]);
  $("files").value = "";
};
document.onpaste = (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) attach(files);
};
let depth = 0;
document.ondragenter = (event) => {
  event.preventDefault();
  depth += 1;
  $("drop").hidden = false;
};
document.ondragleave = () => {
  depth -= 1;
  if (depth <= 0) $("drop").hidden = true;
};
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  attach([...event.dataTransfer.files].filter((file) => file.type.startsWith("image/")));
};
$("key").onchange = begin;
begin();
