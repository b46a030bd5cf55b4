// Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
// What the page shows. The model runs in worker.js.

const byId = (id) => document.getElementById(id);
const status = (text, isError = false) => {
  byId("status").className = isError ? "error" : "";
  byId("status").textContent = text;
};
const create = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const answers = new Map(); // the list items of questions, by id
let settings;

function start() {
  if (typeof WebAssembly === "undefined" || typeof OffscreenCanvas === "undefined") {
    const message = "This browser lacks WebAssembly or OffscreenCanvas, which the page needs. Update it.";
    return handlers.failed({ message });
  }
  status("Loading the model …");
  const worker = new Worker("worker.js", { type: "module" });
  worker.onerror = () => handlers.failed({
    message: "worker.js or answerer.js could not be loaded. Copy the whole folder of the page.",
  });
  worker.onmessage = ({ data }) => handlers[data.kind](data);

  const choose = (file) => {
    if (!file) return;
    byId("tiles").replaceChildren();
    byId("answers").replaceChildren();
    byId("summary").textContent = `Reading ${file.name} …`;
    worker.postMessage({ kind: "image", file });
  };
  byId("file").onclick = () => { byId("file").value = ""; }; // so that the same file can be chosen again
  byId("file").onchange = () => choose(byId("file").files[0]);
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    choose(event.dataTransfer.files[0]);
  };
  document.onpaste = (event) => choose(event.clipboardData.files[0]);
  byId("samples").onclick = async ({ target }) => {
    const sample = target.closest("button")?.sample;
    if (!sample) return;
    byId("question").value = sample.question;
    const response = await fetch(`model/samples/${sample.image}`);
    choose(new File([await response.blob()], sample.image));
  };
  byId("form").onsubmit = (event) => {
    event.preventDefault();
    const question = byId("question").value.trim();
    if (!question) return;
    const id = answers.size;
    const answer = create("p", { className: "answer" });
    const item = create("li", {}, create("p", { textContent: question }), answer);
    item.setAttribute("aria-busy", "true");
    answers.set(id, { item, answer, tokens: [], start: performance.now() });
    byId("answers").prepend(item);
    worker.postMessage({ kind: "question", question, id });
  };
}

const handlers = {
  progress({ loaded, total }) {
    byId("progress").value = loaded / total;
  },
  ready({ settings: content }) {
    settings = content;
    byId("progress").hidden = true;
    byId("ask").disabled = false;
    status("Ready.");
    const samples = settings.samples ?? [];
    byId("samples").append(...samples.map((sample) => {
      const image = create("img", { src: `model/samples/${sample.image}`, alt: `Sample ${sample.image}` });
      return create("button", { type: "button", sample }, image);
    }));
    const questions = new Set(samples.map(({ question }) => question));
    byId("questions").append(...[...questions].map((value) => create("option", { value })));
  },
  failed({ message }) {
    byId("progress").hidden = true;
    status(message, true);
  },
  image({ file, grid, pixels }) {
    const [rows, columns] = grid.grid;
    const numTokens = grid.tokens.split("<").length - 1;
    byId("summary").textContent =
      `${file.name}: ${rows} × ${columns} tiles and a thumbnail, ${numTokens} image tokens.`;
    const size = settings.tile_size;
    const drawn = Array.from({ length: 1 + rows * columns }, (_, index) =>
      drawTile(pixels.subarray(index * 3 * size * size, (index + 1) * 3 * size * size), index));
    const tiles = create("div", { className: "grid" }, ...drawn.slice(1));
    tiles.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    tiles.style.maxWidth = `${9 * columns}rem`;
    const thumbnail = create("div", { className: "grid thumbnail" }, drawn[0]);
    byId("tiles").replaceChildren(thumbnail, tiles);
    status("Ready.");
  },
  piece({ id, text, token }) {
    const entry = answers.get(id);
    entry.tokens.push(token);
    entry.first ??= performance.now();
    entry.answer.append(entry.answer.textContent ? text : text.trimStart());
  },
  answered({ id }) {
    const { item, tokens, start, first = performance.now() } = answers.get(id);
    const seconds = (performance.now() - start) / 1000;
    item.append(create("small", { textContent: `Tokens: ${tokens.length}, time: ${seconds.toFixed(2)} s` }));
    Object.assign(item.dataset, { tokens: tokens.join(" "), seconds, first: (first - start) / 1000 });
    item.setAttribute("aria-busy", "false");
  },
  error({ id, message }) {
    if (id === undefined) { // of an image
      byId("summary").textContent = "";
      return status(message, true);
    }
    const { item, answer } = answers.get(id);
    answer.classList.add("error");
    answer.textContent = message;
    item.setAttribute("aria-busy", "false");
  },
};

// Draws a tile as the model sees it: pixel values, [3, size, size], without their normalization.
function drawTile(values, index) {
  const { image: { image_mean, image_std }, tile_size: size } = settings;
  const canvas = create("canvas", { width: size, height: size });
  const image = new ImageData(size, size);
  for (let pixel = 0; pixel < size * size; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = values[channel * size * size + pixel];
      image.data[4 * pixel + channel] = 255 * (value * image_std[channel] + image_mean[channel]);
    }
    image.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", index ? `Tile ${index}` : "Thumbnail");
  return canvas;
}

start();
