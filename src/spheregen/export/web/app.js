// The page: controls, images and keys. All computing is in engine.js, a worker.

import { SEED_LIMIT } from "./noise.js";
import { withText } from "./png.js";

const FAMILIAR = 0.4; // of a photo's variance; a model that keeps less does not know such photos
const LARGEST_FILE = 64 << 20;
const $ = (name) => document.getElementById(name);

// the engine ----------------------------------------------------------------------------------------------------------

const engine = new Worker("engine.js", { type: "module" });
const waiting = new Map();
let calls = 0;

engine.onmessage = ({ data: { number, found, problem } }) => {
  const { resolve, reject } = waiting.get(number);
  waiting.delete(number);
  if (problem === undefined) resolve(found);
  else reject(new Error(problem));
};
engine.onerror = () => tell("The model could not be started in this browser; a recent one is needed.");

function ask(call, values) {
  return new Promise((resolve, reject) => {
    waiting.set(++calls, { resolve, reject });
    engine.postMessage({ number: calls, call, values });
  });
}

function tell(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

/** Run what a person asked for: one thing at a time, the last one of those that wait; its errors are told. */
async function act(what) {
  if (state.moving) move(state.moving);
  if (state.busy) {
    state.next = what;
    return;
  }
  state.busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    tell("");
    await what();
  } catch (error) {
    tell(error.message);
  } finally {
    state.busy = false;
    document.body.removeAttribute("aria-busy");
  }
  const { next } = state;
  state.next = null;
  if (next) await act(next);
}

// state ---------------------------------------------------------------------------------------------------------------

const state = {
  manifest: null,
  busy: false,
  next: null, // what was asked for meanwhile
  current: null, // {source: {seed, path} or {photo, path}, label, seed}
  pixels: null, // of the current image
  settings: null, // that it was made with
  photo: null, // in [-1, 1]
  nine: [],
  corners: [],
  place: [0.5, 0.5],
  moving: null, // "loop" or "roam"
};

const classes = () => state.manifest.num_classes;
const follows = () => Boolean(state.manifest.text); // prompts
const className = (label) => (label === null ? "none" : state.manifest.class_names[label] ?? String(label));

function seedOf(text) {
  if (!/^\d{1,19}$/.test(text.trim()) || BigInt(text) >= SEED_LIMIT) {
    throw new Error("A seed is a whole number from 0 to 9223372036854775807.");
  }
  return BigInt(text);
}

function randomSeed() {
  return BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);
}

function labelFor(seed) {
  if (follows()) return $("prompt").value.normalize("NFC").trim().split(/\s+/).join(" ") || null;
  const chosen = $("class").value;
  if (!classes() || chosen === "none") return null;
  return chosen === "seed" ? Number(seed % BigInt(classes())) : Number(chosen);
}

function numberOf(name, low, high) {
  const value = $(name).valueAsNumber;
  if (!(value >= low && value <= high)) throw new Error(`${name} lies between ${low} and ${high}.`);
  return value;
}

function settings() {
  const { sampling, fitted_prior: fitted, unguided } = state.manifest;
  const found = { ...sampling, seed: seedOf($("seed").value), steps: Math.round(numberOf("steps", 1, 64)) };
  found.guidance = classes() || follows() ? numberOf("guidance", 0, state.manifest.guidance_law === "rotation" ? 90 : 20) : unguided;
  found.prior = fitted ? $("prior").value : "sphere";
  if (found.prior === "fitted") found.temperature = numberOf("temperature", 0, 2);
  else Object.assign(found, { temperature: 1, prior_angle: 0 });
  return found;
}

const item = (seed, path = []) => ({ source: { seed, path }, label: labelFor(seed), seed });

// images --------------------------------------------------------------------------------------------------------------

function paint(canvas, pixels, number = 0) {
  const [channels, side] = state.manifest.image_shape;
  const area = side * side;
  const image = new ImageData(side, side);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) {
      const value = pixels[number * channels * area + Math.min(c, channels - 1) * area + i];
      image.data[4 * i + c] = Math.round((value + 1) * 127.5);
    }
    image.data[4 * i + 3] = 255;
  }
  if (canvas.width !== side) {
    canvas.width = canvas.height = side;
    canvas.classList.toggle("small", side < 128);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function part(pixels, number) {
  const one = pixels.length / Math.max(1, Math.round(pixels.length / state.manifest.image_shape.reduce((a, b) => a * b)));
  return pixels.slice(number * one, (number + 1) * one);
}

function describe({ source, label, seed }) {
  const words = [source.photo ? "a photo" : `seed ${source.seed}`];
  if (source.path?.length) words.push(`${source.path.length} step${source.path.length > 1 ? "s" : ""} away`);
  if (source.between) words[0] = `between ${source.between.join(", ")}`;
  if (source.edit) words.push("changed");
  if (classes()) words.push(`class ${className(label)}`);
  if (follows() && label !== null) words.unshift(label);
  return words.join(", ");
}

function show(current, pixels, used) {
  state.current = current;
  state.pixels = pixels;
  state.settings = used;
  paint($("image"), pixels);
  caption();
  remember();
}

function caption() {
  $("caption").textContent = describe(state.current);
  $("image").setAttribute("aria-label", `Generated image, ${describe(state.current)}`);
}

async function generated(items, used) {
  const began = performance.now();
  const pixels = await ask("generate", { items, settings: used });
  const took = (performance.now() - began) / items.length;
  $("status").textContent = `${state.runs} · ${took < 10 ? took.toFixed(1) : Math.round(took)} ms an image`;
  return pixels;
}

async function make(current) {
  const used = settings();
  show(current, await generated([current], used), used);
}

async function nine(items) {
  const used = settings();
  const pixels = await generated(items, used);
  state.nine = items.map((each, number) => ({ ...each, pixels: part(pixels, number), used }));
  [...$("nine").children].forEach((button, number) => {
    paint(button.firstChild, state.nine[number].pixels);
    button.setAttribute("aria-label", `Image ${number + 1}: ${describe(items[number])}`);
  });
  choose(0);
}

function choose(number, focus = false) {
  const chosen = state.nine[number];
  if (!chosen) return;
  [...$("nine").children].forEach((button, place) => {
    button.setAttribute("aria-pressed", String(place === number));
    button.tabIndex = place === number ? 0 : -1;
  });
  if (focus) $("nine").children[number].focus();
  const { pixels, used, ...current } = chosen;
  if (!current.source.photo) $("seed").value = String(current.source.seed);
  show(current, pixels, used);
}

/** The image itself, and eight at an angle from it. */
function around({ source, label, seed }) {
  const degrees = $("angle").valueAsNumber;
  const away = Array.from({ length: 8 }, () => {
    const step = [randomSeed(), degrees];
    return { source: { ...source, path: [...(source.path ?? []), step] }, label, seed };
  });
  return nine([{ source, label, seed }, ...away]);
}

const newImage = () => {
  const seed = randomSeed();
  $("seed").value = String(seed);
  return make(item(seed));
};

const moreLikeThis = async () => {
  if (state.current.source.between || state.current.source.edit) throw new Error("More like this starts from a seed or a photo; choose one first.");
  select("nine");
  await around(state.current);
};

async function refresh() {
  const source = state.current?.source;
  if (source?.photo || source?.between) return;
  const seed = seedOf($("seed").value);
  const path = source && source.seed === seed ? source.path : [];
  const current = item(seed, path);
  const others = state.nine.slice(1).filter((each) => !each.source.photo);
  if (others.length) await nine([current, ...others.map((each) => item(each.source.seed, each.source.path))]);
  else await make(current);
}

// links and files -----------------------------------------------------------------------------------------------------

function linkOf(current, used) {
  const found = new URLSearchParams({ seed: String(current.source.seed), class: $("class").value, steps: used.steps });
  if (classes() || follows()) found.set("guidance", used.guidance);
  if (follows() && current.label !== null) found.set("prompt", current.label);
  if (state.manifest.fitted_prior) found.set("prior", used.prior);
  if (used.prior === "fitted") found.set("temperature", used.temperature);
  if (current.source.path?.length) found.set("path", current.source.path.map(([seed, by]) => `${seed}:${by}`).join(","));
  if ($("backend").value !== "auto") found.set("runs", $("backend").value);
  return found;
}

const shareable = (current) => current && current.source.seed !== undefined;

function remember() {
  if (shareable(state.current)) history.replaceState(null, "", `#${linkOf(state.current, state.settings)}`);
}

function readLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  const set = (name, key) => {
    const value = given.get(key);
    const element = $(name);
    if (value === null) return;
    if (element.tagName === "SELECT" && ![...element.options].some((option) => option.value === value)) return;
    element.value = value;
  };
  for (const [name, key] of [["class", "class"], ["prompt", "prompt"], ["steps", "steps"], ["guidance", "guidance"], ["prior", "prior"], ["temperature", "temperature"], ["backend", "runs"]]) set(name, key);
  showValues();
  const seed = given.get("seed");
  if (seed === null) return null;
  $("seed").value = seed;
  const steps = (given.get("path") ?? "").split(",").filter(Boolean).slice(0, 1000);
  return item(
    seedOf(seed),
    steps.map((step) => {
      const [other, degrees] = step.split(":");
      if (!(Number(degrees) >= 0 && Number(degrees) <= 180)) throw new Error("The link of this page is damaged.");
      return [seedOf(other ?? ""), Number(degrees)];
    }),
  );
}

async function copyLink() {
  if (!shareable(state.current)) throw new Error("A link holds seeds and settings; a photo stays on this device.");
  remember();
  try {
    await navigator.clipboard.writeText(location.href);
    $("status").textContent = "The link is copied.";
  } catch {
    $("status").textContent = `The link: ${location.href}`;
  }
}

async function savePng() {
  const { current, settings: used, manifest } = state;
  const canvas = document.createElement("canvas");
  paint(canvas, state.pixels);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const { seed, ...how } = used;
  const plain = shareable(current) && !current.source.path.length;
  const record = { ...how, ...(plain ? {} : { noise: "given" }) };
  const texts = {
    Software: manifest.made_by.replace(" export", ""),
    model: manifest.title,
    fingerprint: manifest.fingerprint,
    seed: String(current.source.seed ?? current.seed),
    ...(current.label === null || follows() ? {} : { label: String(current.label), class: className(current.label) }),
    ...(follows() ? { prompt: current.label ?? "" } : {}),
    ...(shareable(current) ? { link: String(linkOf(current, used)) } : {}),
    settings: JSON.stringify(record),
  };
  const file = withText(new Uint8Array(await blob.arrayBuffer()), texts);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `${manifest.title.replace(/[^\w-]+/g, "-")}-${texts.seed}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  $("status").textContent = `Saved as ${link.download}.`;
}

// photos --------------------------------------------------------------------------------------------------------------

/** A file as the model sees it, in [-1, 1]: its centre square, or all of it on the background. */
async function readPhoto(file) {
  if (file.size > LARGEST_FILE) throw new Error("This file is larger than 64 MB; take a smaller one.");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This file"} is no image that this browser can read.`);
  }
  const [channels, side] = state.manifest.image_shape;
  const { fit, background } = state.manifest.preprocessing;
  const deciding = fit === "crop" ? Math.min(bitmap.width, bitmap.height) : Math.max(bitmap.width, bitmap.height);
  let [width, height] = [bitmap.width, bitmap.height];
  let from = bitmap;
  let now = deciding;
  while (now >= 2 * side) {
    // halves first, so that no pixel is left out
    now = Math.floor(now / 2);
    [width, height] = [Math.max(1, Math.floor(width / 2)), Math.max(1, Math.floor(height / 2))];
    const half = new OffscreenCanvas(width, height);
    const brush = half.getContext("2d");
    brush.imageSmoothingQuality = "high";
    brush.drawImage(from, 0, 0, width, height);
    from = half;
  }
  const scale = side / now;
  const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  const canvas = new OffscreenCanvas(side, side);
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  brush.fillStyle = `rgb(${background.join(" ")})`;
  brush.fillRect(0, 0, side, side);
  brush.imageSmoothingQuality = "high";
  brush.drawImage(from, Math.floor((side - w) / 2), Math.floor((side - h) / 2), w, h);
  bitmap.close();
  const { data } = brush.getImageData(0, 0, side, side);
  const area = side * side;
  const found = new Float32Array(channels * area);
  for (let i = 0; i < area; i++) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (channels === 1) found[i] = Math.round(0.299 * r + 0.587 * g + 0.114 * b) / 127.5 - 1;
    else [r, g, b].forEach((value, c) => (found[c * area + i] = value / 127.5 - 1));
  }
  return found;
}

async function takePhoto(file) {
  state.photo = await readPhoto(file);
  paint($("photo"), state.photo);
  $("pair").hidden = false;
  for (const name of ["rebuild", "vary", "change"]) $(name).disabled = false;
  await rebuild();
}

async function rebuild() {
  const used = settings();
  const { images, kept } = await ask("reconstruct", { photo: state.photo, label: null, settings: used });
  paint($("rebuilt"), images);
  const share = Math.max(0, Math.round(100 * kept));
  $("kept").textContent = `there and back, ${share} % kept`;
  $("far").hidden = kept >= FAMILIAR;
  if (kept < FAMILIAR) {
    $("far").textContent = `This photo is far from what the model knows: only ${share} % of it comes back. Expect little of it in what follows.`;
  }
  show({ source: { photo: state.photo, path: [] }, label: null, seed: used.seed }, images, used);
}

async function changeClass() {
  const used = settings();
  const label = follows() ? labelFor(0n) : $("target").value === "none" ? null : Number($("target").value);
  const images = await ask("edit", { photo: state.photo, label, settings: used });
  show({ source: { photo: state.photo, edit: true }, label, seed: used.seed }, images, used);
}

// the pad -------------------------------------------------------------------------------------------------------------

async function setCorners(items) {
  const used = settings();
  const pixels = await ask("generate", { items, settings: used });
  state.corners = items;
  items.forEach((_, number) => paint($(`corner-${number}`).firstChild, pixels, number));
  state.corner_key = crypto.randomUUID();
}

async function putCorner(number) {
  const { current, pixels } = state;
  if (current.source.between || current.source.edit) throw new Error("A corner takes a seed or a photo; choose one first.");
  if (!state.corners.length) await setCorners([0, 1, 2, 3].map(() => item(randomSeed())));
  state.corners = state.corners.map((each, place) => (place === number ? current : each));
  paint($(`corner-${number}`).firstChild, pixels);
  state.corner_key = crypto.randomUUID();
}

function movePad(x, y) {
  state.place = [Math.min(1, Math.max(0, x)), Math.min(1, Math.max(0, y))];
  $("dot").style.left = `${100 * state.place[0]}%`;
  $("dot").style.top = `${100 * state.place[1]}%`;
  $("pad").setAttribute("aria-valuenow", String(Math.round(100 * state.place[0])));
  $("pad").setAttribute("aria-valuetext", `${Math.round(100 * state.place[0])} % to the right, ${Math.round(100 * state.place[1])} % down`);
  drawPad();
}

const pad = { running: false, again: false };

/** Draw the image of the point; while one is made, only the last place that was asked for waits. */
async function drawPad() {
  if (pad.running) {
    pad.again = true;
    return;
  }
  pad.running = true;
  try {
    do {
      pad.again = false;
      if (!state.corners.length) await setCorners([0, 1, 2, 3].map(() => item(randomSeed())));
      await frame(state.corners, state.place, state.corner_key);
    } while (pad.again);
  } catch (error) {
    tell(error.message);
  } finally {
    pad.running = false;
  }
}

async function frame(items, place, key) {
  const used = settings();
  const whole = `${key} ${JSON.stringify([used.prior, used.temperature])}`;
  const pixels = await ask("between", { key: whole, items, places: [place], settings: used });
  const names = items.map(({ source }) => (source.photo ? "a photo" : String(source.seed)));
  const between = { source: { between: [...new Set(names)] }, label: items[0].label, seed: items[0].seed };
  state.current = between;
  state.pixels = pixels;
  state.settings = used;
  paint($("image"), pixels);
  if (!state.moving) caption();
}

async function move(kind) {
  const stop = state.moving === kind;
  tell("");
  state.moving = stop ? null : kind;
  for (const name of ["loop", "roam"]) $(name).setAttribute("aria-pressed", String(state.moving === name));
  if (stop) return;
  const mine = Symbol(kind);
  state.mover = mine;
  try {
    if (!state.corners.length) await setCorners([0, 1, 2, 3].map(() => item(randomSeed())));
    const ends = [item(randomSeed()), item(randomSeed())];
    let [time, before, frames, since, key] = [0, performance.now(), 0, performance.now(), crypto.randomUUID()];
    while (state.moving === kind && state.mover === mine) {
      const now = performance.now();
      time += ((now - before) / 1000) * $("speed").valueAsNumber;
      before = now;
      if (kind === "loop") {
        const at = (2 * Math.PI * time) / 6;
        state.place = [0.5 + 0.5 * Math.cos(at), 0.5 + 0.5 * Math.sin(at)];
        $("dot").style.left = `${100 * state.place[0]}%`;
        $("dot").style.top = `${100 * state.place[1]}%`;
        await frame(state.corners, state.place, state.corner_key);
      } else {
        if (time >= 2) {
          time %= 2;
          ends.splice(0, 2, ends[1], item(randomSeed()));
          key = crypto.randomUUID();
        }
        await frame([ends[0], ends[1], ends[0], ends[1]], [(1 - Math.cos((Math.PI * time) / 2)) / 2, 0], key);
      }
      frames++;
      if (now - since > 500) {
        $("fps").textContent = `${((1000 * frames) / (now - since)).toFixed(0)} frames a second`;
        [frames, since] = [0, now];
      }
      await new Promise(requestAnimationFrame);
    }
  } catch (error) {
    tell(error.message);
  } finally {
    if (state.mover === mine) {
      state.moving = null;
      for (const name of ["loop", "roam"]) $(name).setAttribute("aria-pressed", "false");
      $("fps").textContent = "";
      caption();
    }
  }
}

// the page ------------------------------------------------------------------------------------------------------------

const PANELS = ["nine", "photo", "explore"];

function select(name, focus = false) {
  for (const each of PANELS) {
    const chosen = each === name;
    $(`tab-${each}`).setAttribute("aria-selected", String(chosen));
    $(`tab-${each}`).tabIndex = chosen ? 0 : -1;
    $(`panel-${each}`).hidden = !chosen;
  }
  if (focus) $(`tab-${name}`).focus();
  if (name !== "explore" && state.moving) move(state.moving);
  if (name === "explore" && !state.corners.length) act(() => setCorners([0, 1, 2, 3].map(() => item(randomSeed()))));
}

function showValues() {
  $("angle-value").textContent = `${$("angle").value}°`;
  $("temperature-value").textContent = $("temperature").value;
  $("temperature-row").hidden = !state.manifest.fitted_prior || $("prior").value !== "fitted";
}

function fill() {
  const { manifest } = state;
  const { sampling } = manifest;
  $("title").textContent = document.title = manifest.title;
  const names = Array.from({ length: classes() }, (_, id) => new Option(className(id), String(id)));
  $("class").append(new Option("by seed", "seed"), new Option("none", "none"), ...names);
  $("target").append(...names.map((option) => option.cloneNode(true)));
  for (const name of ["class-row", "target-row"]) $(name).hidden = !classes();
  for (const name of ["guidance-row", "change-row"]) $(name).hidden = !classes() && !follows();
  $("prompt-row").hidden = !follows();
  if (follows()) $("change").textContent = "Change to the prompt";
  if (manifest.guidance_law === "rotation") $("guidance-name").textContent = "Guidance, degrees";
  $("steps").value = sampling.steps;
  $("guidance").value = sampling.guidance;
  $("prior").value = sampling.prior;
  $("temperature").value = sampling.temperature;
  $("prior-row").hidden = !manifest.fitted_prior;
  $("tab-photo").hidden = !manifest.graphs.encoder;
  const licence = manifest.license ? `Licence of the model: ${manifest.license}. ` : "";
  $("about").textContent = `${licence}Everything runs in this page; nothing is sent anywhere. Made by ${manifest.made_by}.`;
  for (let number = 0; number < 9; number++) {
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    canvas.className = "picture";
    button.append(canvas);
    button.tabIndex = number ? -1 : 0;
    button.addEventListener("click", () => choose(number));
    $("nine").append(button);
  }
}

function listen() {
  const on = (name, what) => $(name).addEventListener("click", () => act(what));
  on("new", newImage);
  on("more", moreLikeThis);
  on("like", moreLikeThis);
  on("again", () => nine(Array.from({ length: 9 }, () => item(randomSeed()))));
  on("save", savePng);
  on("link", copyLink);
  on("rebuild", rebuild);
  on("vary", async () => {
    select("nine");
    const label = labelFor(0n);
    await around({ source: { photo: state.photo, path: [] }, label: classes() && $("class").value === "seed" ? null : label, seed: settings().seed });
  });
  on("change", changeClass);
  on("corners", async () => {
    await setCorners([0, 1, 2, 3].map(() => item(randomSeed())));
    drawPad();
  });
  for (const number of [0, 1, 2, 3]) on(`corner-${number}`, () => putCorner(number));
  for (const name of ["loop", "roam"]) $(name).addEventListener("click", () => move(name));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["class", "prompt", "seed", "steps", "guidance", "prior", "temperature"]) {
    $(name).addEventListener("change", () => act(refresh));
  }
  $("backend").addEventListener("change", () => {
    const given = new URLSearchParams(location.hash.slice(1));
    given.set("runs", $("backend").value);
    history.replaceState(null, "", `#${given}`);
    location.reload();
  });
  for (const name of ["angle", "temperature", "prior"]) $(name).addEventListener("input", showValues);
  window.addEventListener("hashchange", () => act(async () => make(readLink() ?? item(seedOf($("seed").value)))));

  for (const [number, name] of PANELS.entries()) {
    $(`tab-${name}`).addEventListener("click", () => select(name));
    $(`tab-${name}`).addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step) select(PANELS[(number + step + PANELS.length) % PANELS.length], true);
    });
  }
  $("nine").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 3, ArrowUp: -3 }[event.key];
    const place = [...$("nine").children].indexOf(document.activeElement);
    if (!step || place < 0) return;
    event.preventDefault();
    choose(Math.min(8, Math.max(0, place + step)), true);
  });

  $("file").addEventListener("change", () => $("file").files[0] && act(() => takePhoto($("file").files[0])));
  for (const [kind, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    window.addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", over);
    });
  }
  window.addEventListener("drop", (event) => {
    const file = event.dataTransfer?.files[0];
    if (!file || !state.manifest.graphs.encoder) return;
    select("photo");
    act(() => takePhoto(file));
  });

  const toPad = (event) => {
    const box = $("pad").getBoundingClientRect();
    movePad((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  $("pad").addEventListener("pointerdown", (event) => {
    $("pad").setPointerCapture(event.pointerId);
    toPad(event);
  });
  $("pad").addEventListener("pointermove", (event) => event.buttons && toPad(event));
  $("pad").addEventListener("keydown", (event) => {
    const [x, y] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key] ?? [0, 0];
    if (!x && !y) return;
    event.preventDefault();
    movePad(state.place[0] + 0.05 * x, state.place[1] + 0.05 * y);
  });

  document.addEventListener("keydown", (event) => {
    const writing = event.target.closest("input:not([type=range]), select, textarea");
    if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
    const wanted = { n: newImage, m: moreLikeThis, s: savePng, l: copyLink }[event.key.toLowerCase()];
    if (wanted && state.manifest) act(wanted);
  });
}

async function begin() {
  const runs = new URLSearchParams(location.hash.slice(1)).get("runs") ?? "auto";
  const { manifest, backend } = await ask("start", { backend: runs });
  state.manifest = manifest;
  state.runs = `${backend === "webgpu" ? "WebGPU" : "WASM"} · ${manifest.precision}`;
  fill();
  let first = null;
  try {
    first = readLink();
  } catch (error) {
    tell(error.message);
    $("seed").value = "0";
  }
  showValues();
  listen();
  await make(first ?? item(seedOf($("seed").value)));
  for (const button of document.querySelectorAll("button:disabled")) {
    button.disabled = ["rebuild", "vary", "change"].includes(button.id);
  }
  document.body.dataset.ready = "true";
  await act(() => nine([state.current, ...Array.from({ length: 8 }, () => item(randomSeed()))]));
  if ("serviceWorker" in navigator && window.isSecureContext) {
    navigator.serviceWorker.register("offline.js").catch(() => {}); // without it, all works but offline
  }
}

begin().catch((error) => tell(`The model could not be opened: ${error.message}`));
