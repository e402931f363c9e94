"use strict";
const told = JSON.parse(document.getElementById("told").textContent);
const at = (id) => document.getElementById(id);
const TAU = 2 * Math.PI;
const TIMED_MS = 150;
const MOST_CALLS = 20;

let ort = null;
let chosen = told.models.length - 1;
let picture = null;
let results = [];
let camera = null;
let turn = 0;

// What is packed into the page

async function unpacked(id) {
  const text = at(id).textContent;
  const packed = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function begin() {
  const url = URL.createObjectURL(new Blob([await unpacked("runtime")], {type: "text/javascript"}));
  ort = await import(url);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await unpacked("program")).buffer;
  ort.env.logLevel = "error";
  for (let i = 0; i < told.models.length; i++) {
    told.models[i].session = await ort.InferenceSession.create(await unpacked(`model-${i}`), {executionProviders: ["wasm"]});
  }
}

// From a picture to the network's input: what Pillow and torch do in training, number for number

// The weight of a pixel that lies so far from where one is made: of Pillow's filters, which torch's have too
const TRIANGLE = {reach: 1, at: (x) => Math.max(0, 1 - Math.abs(x))};
const CUBIC = {
  reach: 2,
  at: (x) => {
    const d = Math.abs(x);
    return d < 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
  },
};

function taps(size, out, filter) {
  const scale = size / out, narrow = Math.max(scale, 1), wide = filter.reach * narrow, all = [];
  for (let i = 0; i < out; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - wide + 0.5));
    const last = Math.min(size, Math.trunc(centre + wide + 0.5));
    const weights = [];
    for (let x = first; x < last; x++) weights.push(filter.at((x - centre + 0.5) / narrow));
    const sum = weights.reduce((a, b) => a + b, 0);
    all.push({first, weights: weights.map((weight) => weight / sum)});
  }
  return all;
}

// A plane of h rows of w numbers, resized to side x side; in whole numbers as Pillow counts, or not at all rounded
function resized(plane, w, h, side, whole, filter) {
  const one = 1 << 22;
  const rounded = (weight) => Math.trunc(weight * one + (weight < 0 ? -0.5 : 0.5));
  const count = (tap) => (whole ? tap.weights.map(rounded) : tap.weights);
  const made = (sum) => (whole ? Math.min(255, Math.max(0, Math.floor((sum + one / 2) / one))) : sum);
  const pass = (from, width, height, all, step, line, out, outStep, outLine) => {
    all.forEach((tap, i) => {
      const weights = count(tap);
      for (let j = 0; j < height; j++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * from[j * line + (tap.first + k) * step];
        out[j * outLine + i * outStep] = made(sum);
      }
    });
    return out;
  };
  let now = plane, width = w;
  if (w !== side) {
    now = pass(plane, w, h, taps(w, side, filter), 1, w, new Float64Array(side * h), 1, side);
    width = side;
  }
  if (h === side) return now;
  return pass(now, h, width, taps(h, side, filter), width, 1, new Float64Array(width * side), width, 1);
}

function planesOf(pixels, grey) {
  const count = pixels.length / 4, planes = [];
  if (grey) {
    const plane = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const [r, g, b] = [pixels[4 * i], pixels[4 * i + 1], pixels[4 * i + 2]];
      plane[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    }
    return [plane];
  }
  for (let c = 0; c < 3; c++) planes.push(Float64Array.from({length: count}, (_, i) => pixels[4 * i + c]));
  return planes;
}

// The central square of something drawable, over white, as planes of whole numbers at the size of the training images
function seen(source, width, height, how) {
  const side = Math.min(width, height), canvas = new OffscreenCanvas(side, side);
  const context = canvas.getContext("2d", {willReadFrequently: true, colorSpace: "srgb"});
  context.fillStyle = "white";
  context.fillRect(0, 0, side, side);
  context.drawImage(source, -Math.floor((width - side) / 2), -Math.floor((height - side) / 2));
  const size = how.image_size ?? how.resolution;
  const pixels = context.getImageData(0, 0, side, side).data;
  const filter = how.interpolation === "bicubic" ? CUBIC : TRIANGLE;
  return planesOf(pixels, how.channels === 1).map((plane) => resized(plane, side, side, size, true, filter));
}

function inputOf(planes, how) {
  const size = how.image_size ?? how.resolution, out = how.resolution;
  const values = new Float32Array(planes.length * out * out);
  planes.forEach((plane, c) => {
    const normal = plane.map((pixel) => (pixel / 255 - how.mean[c]) / how.std[c]);
    values.set(size === out ? normal : resized(normal, size, size, out, false, TRIANGLE), c * out * out);
  });
  return new ort.Tensor("float32", values, [1, planes.length, out, out]);
}

async function logitsOf(number, planes) {
  const model = told.models[number];
  const found = await model.session.run({[told.input]: inputOf(planes, model.preprocessing)});
  return Array.from(found[told.output].data);
}

function softmax(logits) {
  const most = Math.max(...logits), powers = logits.map((logit) => Math.exp(logit - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// One picture through all networks

async function timed(number, planes, calls) {
  const times = [], began = performance.now();
  let logits = await logitsOf(number, planes);
  do {
    const start = performance.now();
    logits = await logitsOf(number, planes);
    times.push(performance.now() - start);
  } while (times.length < calls && performance.now() - began < TIMED_MS);
  times.sort((a, b) => a - b);
  return {logits, ms: times[times.length >> 1]};
}

async function look(source, width, height, calls = MOST_CALLS, numbers = told.models.map((_, i) => i)) {
  const mine = ++turn;
  const side = Math.min(width, height), context = at("given").getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, 280, 280);
  context.drawImage(source, (width - side) / 2, (height - side) / 2, side, side, 0, 0, 280, 280);
  const cache = {};
  for (const number of numbers) {
    const how = told.models[number].preprocessing, key = `${how.image_size}/${how.resolution}/${how.channels}`;
    const planes = (cache[key] ??= seen(source, width, height, how));
    const found = await timed(number, planes, calls);
    if (mine !== turn) return;
    results[number] = {...found, planes, chances: softmax(found.logits)};
  }
  picture = true;
  show();
}

// What is shown

function show() {
  const model = told.models[chosen], result = results[chosen];
  at("slider").value = chosen;
  at("name").textContent = model.name;
  at("facts").textContent = facts(model, result);
  document.querySelectorAll("#all tbody tr").forEach((row, i) => {
    const found = results[i], best = found ? found.chances.indexOf(Math.max(...found.chances)) : -1;
    row.classList.toggle("chosen", i === chosen);
    row.cells[4].textContent = found ? found.ms.toPrecision(2) : "";
    row.cells[5].textContent = found ? told.classes[best] : "";
    row.cells[6].textContent = found ? percent(found.chances[best]) : "";
  });
  if (!result) return;
  const order = result.chances.map((_, i) => i).sort((a, b) => result.chances[b] - result.chances[a]);
  at("answer").textContent = `${told.classes[order[0]]}, ${percent(result.chances[order[0]])}`;
  at("bars").replaceChildren(...order.slice(0, 6).map((i) => barOf(told.classes[i], result.chances[i])));
  paint(result.planes, model.preprocessing);
}

const percent = (part) => `${(100 * part).toFixed(part > 0.9995 || part < 0.0995 ? 1 : 0)}%`;

function facts(model, result) {
  const parts = [`${(model.macs / 1e6).toPrecision(3)} M MACs`];
  if (model.top1 !== null) parts.push(`${model.top1.toFixed(1)}% on ${model.test_images} test images`);
  if (result) parts.push(`${result.ms.toPrecision(2)} ms here`);
  return parts.join(", ");
}

function barOf(name, part) {
  const item = document.createElement("li"), label = document.createElement("span");
  const bar = document.createElement("span"), inside = document.createElement("span"), number = document.createElement("span");
  label.textContent = name;
  bar.className = "bar";
  inside.style.width = `${100 * part}%`;
  number.className = "n";
  number.textContent = percent(part);
  bar.append(inside);
  item.append(label, bar, number);
  return item;
}

function paint(planes, how) {
  const size = how.image_size ?? how.resolution, canvas = at("seen");
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = planes[planes.length === 1 ? 0 : c][i];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  at("about-seen").textContent = `What the network sees: ${size} x ${size} pixels`;
}

function table() {
  const rows = told.models.map((model, i) => {
    const row = document.createElement("tr");
    const top1 = model.top1 === null ? "" : `${model.top1.toFixed(1)}%`;
    const texts = [model.name, (model.macs / 1e6).toPrecision(3), Math.round(model.bytes / 1000).toString(), top1, "", "", ""];
    texts.forEach((text, j) => {
      const cell = row.insertCell();
      cell.textContent = text;
      if ([1, 2, 3, 4, 6].includes(j)) cell.className = "n";
    });
    row.addEventListener("click", () => choose(i));
    return row;
  });
  document.querySelector("#all tbody").replaceChildren(...rows);
}

function choose(number) {
  chosen = number;
  show();
}

const say = (text) => { at("state").textContent = text; };

// Where pictures come from

async function give(blob) {
  stopCamera();
  drawing(false);
  try {
    const bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
    await look(bitmap, bitmap.width, bitmap.height);
    say("");
  } catch (error) {
    say(`This is not an image that the browser can read (${error.message}).`);
  }
}

async function startCamera() {
  drawing(false);
  try {
    camera = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
  } catch (error) {
    say(`There is no camera here, or it may not be used (${error.message}).`);
    return;
  }
  at("video").srcObject = camera;
  await at("video").play();
  at("camera").setAttribute("aria-pressed", "true");
  say("");
  const next = async () => {
    if (!camera) return;
    const video = at("video");
    if (video.videoWidth) await look(video, video.videoWidth, video.videoHeight, 1);
    requestAnimationFrame(next);
  };
  next();
}

function stopCamera() {
  if (camera) camera.getTracks().forEach((track) => track.stop());
  camera = null;
  at("camera").setAttribute("aria-pressed", "false");
}

const grey = told.models[0].preprocessing.channels === 1;
let lightInk = told.models[0].preprocessing.mean[0] < 0.5;
let stroke = null;
const seenSize = told.models[0].preprocessing.image_size ?? told.models[0].preprocessing.resolution;
const pen = Math.max(22, 1.8 * 280 / seenSize);

function drawing(on) {
  at("pad").hidden = !on;
  at("given").hidden = on;
  document.querySelector(".pad-tools").hidden = !on;
  at("draw").setAttribute("aria-pressed", String(on));
  at("about-given").textContent = on ? "Draw here" : "The central square of what was given";
}

function clearPad() {
  const context = at("pad").getContext("2d", {willReadFrequently: true});
  context.fillStyle = lightInk ? "black" : "white";
  context.fillRect(0, 0, 280, 280);
}

function drawTo(event) {
  const box = at("pad").getBoundingClientRect(), context = at("pad").getContext("2d", {willReadFrequently: true});
  const [x, y] = [280 * (event.clientX - box.left) / box.width, 280 * (event.clientY - box.top) / box.height];
  context.strokeStyle = context.fillStyle = lightInk ? "white" : "black";
  context.lineWidth = pen;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  if (stroke) {
    context.moveTo(...stroke);
    context.lineTo(x, y);
    context.stroke();
  } else {
    context.arc(x, y, pen / 2, 0, TAU);
    context.fill();
  }
  stroke = [x, y];
}

function listen() {
  at("file").addEventListener("change", (event) => event.target.files[0] && give(event.target.files[0]));
  at("camera").addEventListener("click", () => (camera ? stopCamera() : startCamera()));
  at("slider").max = told.models.length - 1;
  at("slider").addEventListener("input", (event) => choose(Number(event.target.value)));
  at("choice").hidden = told.models.length === 1;
  at("draw").hidden = !grey;
  at("draw").addEventListener("click", () => { stopCamera(); clearPad(); drawing(at("pad").hidden); });
  at("clear").addEventListener("click", clearPad);
  at("ink").addEventListener("click", () => { lightInk = !lightInk; clearPad(); });
  const pad = at("pad"), once = () => look(pad, 280, 280, 1);
  pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); stroke = null; drawTo(event); });
  pad.addEventListener("pointermove", (event) => { if (stroke) { drawTo(event); once(); } });
  pad.addEventListener("pointerup", () => { stroke = null; look(pad, 280, 280); });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.toggle("over", name === "dragover");
      const file = name === "drop" && event.dataTransfer.files[0];
      if (file) give(file);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) give(file);
  });
}

table();
listen();
show();
begin().then(
  () => { say("Ready: give it an image."); document.documentElement.dataset.ready = "yes"; },
  (error) => { say(`This browser cannot run the network: ${error.message}`); document.documentElement.dataset.ready = "no"; },
);
