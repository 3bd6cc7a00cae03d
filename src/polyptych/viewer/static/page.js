// The page: one image, a card for every task of the chosen model. What tasks mean is known to the server alone.

const find = (id) => document.getElementById(id);
const [tabs, panels, empty, status, split, opacity, plain, file] =
  ["models", "panels", "empty", "status", "split", "opacity", "plain", "file"].map(find);

let models = [];
let limit = 0;
let chosen = 0;
let image = null; // {id, width, height, original, name}
let occurring = {}; // numbers of the classes that the scene shows, by task
let shown = 0; // counts what was asked to be shown, so that a late answer to an earlier question is dropped
let pointer = null; // the pixel that is waiting to be read
let reading = false;

function say(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("error", wrong);
}

async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error("the server does not answer; is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: `the server said ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const place = () => `/api/images/${image.id}/models/${chosen}`;

// -- models ------------------------------------------------------------------------------------------------------

function listModels() {
  tabs.replaceChildren(...models.map((model, index) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.textContent = model.caption;
    tab.setAttribute("role", "tab");
    tab.addEventListener("click", () => choose(index));
    return tab;
  }));
}

function choose(index) {
  chosen = index;
  [...tabs.children].forEach((tab, i) => tab.setAttribute("aria-selected", String(i === index)));
  if (image) show();
}

// -- images ------------------------------------------------------------------------------------------------------

async function open(dropped) {
  if (!dropped) return;
  if (dropped.size > limit) {
    say(`${dropped.name}: a file of more than ${Math.round(limit / 2 ** 20)} MiB; reduce it first`, true);
    return;
  }
  const turn = ++shown;
  say(`reading ${dropped.name} …`);
  try {
    const query = new URLSearchParams({ name: dropped.name });
    const added = await ask(`/api/images?${query}`, { method: "POST", body: dropped });
    if (turn !== shown) return;
    image = { ...added, name: dropped.name };
    await show();
  } catch (error) {
    if (turn === shown) say(`${dropped.name}: ${error.message}`, true);
  }
}

async function show() {
  const turn = ++shown;
  const cards = models[chosen].tasks.map(makeCard);
  panels.replaceChildren(...cards);
  panels.classList.remove("reading");
  panels.hidden = false;
  empty.hidden = true;
  pointer = null;
  delete panels.dataset.ready;
  say(`predicting ${image.name} …`);
  try {
    const scene = await ask(place());
    if (turn !== shown) return;
    occurring = scene.occurring;
    showLayers();
    const [width, height] = image.original;
    const reduced = width > image.width ? `, reduced from ${width} × ${height}` : "";
    say(`${image.name}: ${image.width} × ${image.height}${reduced}, predicted in ${scene.seconds.toFixed(2)} s`);
    panels.dataset.ready = `${image.id} ${chosen}`;
    read();
  } catch (error) {
    if (turn === shown) say(`${image.name}: ${error.message}`, true);
  }
}

function makeCard(task) {
  const card = find("card").content.firstElementChild.cloneNode(true);
  card.dataset.task = task.name;
  card.classList.add("waiting");
  card.querySelector("h2").textContent = task.name;
  card.querySelector(".unit").textContent = card.querySelector(".unit").title = task.unit;
  const picture = card.querySelector(".image");
  picture.width = image.width;
  picture.height = image.height;
  picture.src = `/api/images/${image.id}`;
  card.querySelector(".layer").alt = `prediction of ${task.name}`;
  const stage = card.querySelector(".stage");
  stage.classList.toggle("small", image.width < 500);
  stage.addEventListener("pointermove", (event) => moved(stage, event));
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    moveSplit(stage, event);
  });
  stage.addEventListener("pointerleave", () => {
    pointer = null;
    panels.classList.remove("reading");
  });
  return card;
}

function showLayers() {
  for (const [index, card] of [...panels.children].entries()) {
    const { legend, layer: over } = models[chosen].tasks[index];
    const here = occurring[card.dataset.task]; // numbers of the classes in this image, the largest first
    const { continuous, entries } = plain.checked ? legend : over;
    card.querySelector(".legend").replaceChildren(
      ...makeLegend({ continuous, entries: here ? here.map((number) => entries[number]) : entries }));
    const layer = card.querySelector(".layer");
    layer.onload = () => card.classList.remove("waiting");
    layer.src = `${place()}/tasks/${encodeURIComponent(card.dataset.task)}${plain.checked ? "?plain=1" : ""}`;
  }
}

const color = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;

function makeLegend({ continuous, entries }) {
  if (!entries.length) return [];
  if (continuous) {
    const bar = document.createElement("div");
    bar.className = "scale";
    bar.style.background = `linear-gradient(to right, ${entries.map((entry) => color(entry.color)).join(", ")})`;
    const ticks = document.createElement("div");
    ticks.className = "ticks";
    ticks.append(...entries.filter((entry) => entry.name).map((entry) => {
      const tick = document.createElement("span");
      tick.textContent = entry.name;
      return tick;
    }));
    return [bar, ticks];
  }
  const list = document.createElement("ul");
  list.append(...entries.map((entry) => {
    const item = document.createElement("li");
    const swatch = document.createElement("i");
    swatch.style.background = color(entry.color);
    item.dataset.name = entry.name;
    item.append(swatch, entry.name);
    return item;
  }));
  return [list];
}

// -- the pointer -------------------------------------------------------------------------------------------------

function share(stage, event) {
  const box = stage.getBoundingClientRect();
  const clamp = (value) => Math.min(Math.max(value, 0), 1);
  return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
}

function moved(stage, event) {
  if (event.buttons & 1) moveSplit(stage, event);
  const [x, y] = share(stage, event);
  panels.style.setProperty("--x", `${100 * x}%`);
  panels.style.setProperty("--y", `${100 * y}%`);
  panels.classList.add("reading");
  pointer = [Math.min(Math.floor(x * image.width), image.width - 1), Math.min(Math.floor(y * image.height), image.height - 1)];
  read();
}

function moveSplit(stage, event) {
  split.value = String(100 * share(stage, event)[0]);
  apply();
}

// One question at a time; the last place wins.
async function read() {
  if (reading || !pointer || !panels.dataset.ready) return;
  reading = true;
  const [x, y] = pointer;
  pointer = null;
  const turn = shown;
  try {
    const answer = await ask(`${place()}/at?x=${x}&y=${y}`);
    if (turn === shown) showValues(answer);
  } catch (error) {
    if (turn === shown) say(error.message, true);
  } finally {
    reading = false;
  }
  read();
}

function showValues({ x, y, values }) {
  panels.dataset.at = `${x} ${y}`;
  for (const card of panels.children) {
    const value = values[card.dataset.task] ?? "";
    card.querySelector(".value").textContent = value;
    for (const item of card.querySelectorAll(".legend li")) {
      const { name } = item.dataset;
      item.classList.toggle("here", value === name || value.startsWith(`${name} `));
    }
  }
}

// -- controls ----------------------------------------------------------------------------------------------------

function apply() {
  const { style } = document.documentElement;
  style.setProperty("--split", `${split.value}%`);
  style.setProperty("--opacity", String(opacity.value / 100));
}

split.addEventListener("input", apply);
opacity.addEventListener("input", apply);
plain.addEventListener("change", () => image && showLayers());
find("choose").addEventListener("click", () => file.click());
file.addEventListener("change", () => {
  open(file.files[0]);
  file.value = "";
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  open(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => open(event.clipboardData.files[0]));

try {
  ({ models, limit } = await ask("/api/models"));
  listModels();
  choose(0);
  apply();
} catch (error) {
  say(error.message, true);
}
