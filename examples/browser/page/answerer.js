// Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
// Answers questions about an image with ONNX graphs. Every step rounds as the image processor and PyTorch do.

const round = Math.fround; // to float32

// Rounds to an integer, and halves to the even one, as Python and PyTorch do.
function roundHalfEven(x) {
  const up = Math.round(x);
  return up - x === 0.5 && up % 2 ? up - 1 : up;
}

// Along an axis: the pixels before and after every sample, and the weight of the latter.
function samples(size, newSize) {
  const scale = round(size / newSize);
  return Array.from({ length: newSize }, (_, index) => {
    const position = Math.max(0, round(scale * (index + 0.5) - 0.5));
    const before = Math.min(Math.trunc(position), size - 1);
    return [before, Math.min(before + 1, size - 1), round(position - before)];
  });
}

// Resizes { values: [3, height, width], height, width } bilinearly, with the roundings of PyTorch's `interpolate`.
function resize(image, [height, width]) {
  if (image.height === height && image.width === width) return image;
  const values = new Float32Array(3 * height * width);
  const rows = samples(image.height, height);
  const columns = samples(image.width, width);
  const isSmall = height + width <= 128; // PyTorch then multiplies the weights first
  let at = 0;
  for (let channel = 0; channel < 3; channel++) {
    const start = channel * image.height * image.width;
    for (const [top, bottom, below] of rows) {
      const upper = start + top * image.width;
      const lower = start + bottom * image.width;
      const above = round(1 - below);
      for (const [left, right, after] of columns) {
        const a = image.values[upper + left], b = image.values[upper + right];
        const c = image.values[lower + left], d = image.values[lower + right];
        const before = round(1 - after);
        // round(x * y + z) is a fused multiply-add: the product of two float32 is exact.
        if (isSmall) {
          let sum = round(round(above * before) * a + round(round(above * after) * b));
          sum = round(round(below * before) * c + sum);
          values[at++] = round(below * after) * d + sum;
        } else {
          const first = round(a * before + round(b * after));
          const second = round(c * before + round(d * after));
          values[at++] = first * above + round(second * below);
        }
      }
    }
  }
  return { values, height, width };
}

// The first grid whose canvas upsamples an image least, or else the one that shrinks it least.
function selectGrid(height, width, { grids, stride, tile_size, layout }) {
  const overlap = tile_size - stride;
  const shortest = layout === "independent" ? 0 : -Infinity;
  const sides = [height, width].map((side) => Math.max(shortest, side - overlap));
  const scales = grids.map(({ grid }) =>
    Math.min(...grid.map((count, axis) => round((count * stride) / sides[axis]))));
  const upsampling = scales.filter((scale) => scale >= 1);
  return grids[scales.indexOf(upsampling.length ? Math.min(...upsampling) : Math.max(...scales))];
}

/**
 * The input of the model for an image.
 *
 * @param {{data: Uint8Array, height: number, width: number}} rgba the image, [height, width, 4]
 * @param {object} settings the content of settings.json
 * @returns {{grid: object, pixels: Float32Array}} the grid, and thumbnail and tiles, [tiles, 3, size, size]
 */
export function prepareImage({ data, height, width }, settings) {
  const { max_aspect_ratio, rescale_factor, image_mean, image_std } = settings.image;
  if (Math.max(height, width) > max_aspect_ratio * Math.min(height, width)) {
    throw new Error(`An image of ${width}×${height} pixels is too narrow. Crop or pad it.`);
  }
  const image = { values: new Float32Array(3 * height * width), height, width };
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      image.values[channel * height * width + pixel] = data[4 * pixel + channel];
    }
  }
  const factor = round(1 / rescale_factor);
  const grid = selectGrid(height, width, settings);
  const { tile_size: size, stride } = settings;
  const pixels = new Float32Array((1 + grid.grid[0] * grid.grid[1]) * 3 * size * size);
  let at = 0;
  for (const frame of [settings.grids[0], grid]) { // the thumbnail is a grid of one tile
    const canvas = resize(image, frame.canvas);
    const normalized = [0, 1, 2].map((channel) => {
      const std = round(image_std[channel]);
      const scale = round(1 / std), shift = round(-round(image_mean[channel]) / std);
      const area = canvas.height * canvas.width;
      return canvas.values.slice(channel * area, (channel + 1) * area).map((value) =>
        round(roundHalfEven(value) / factor) * scale + shift);
    });
    for (let row = 0; row < frame.grid[0]; row++) {
      for (let column = 0; column < frame.grid[1]; column++) {
        for (const channel of normalized) {
          for (let y = 0; y < size; y++, at += size) {
            const start = (row * stride + y) * canvas.width + column * stride;
            pixels.set(channel.subarray(start, start + size), at);
          }
        }
      }
    }
  }
  return { grid, pixels };
}

/** The tokens of a question about an image with this grid. */
export function promptTokens(question, grid, tokenizer, { prompt, reserved }) {
  const found = reserved.find((token) => question.includes(token));
  if (found) throw new Error(`The question contains ${found}, which is reserved.`);
  const text = prompt.before + grid.tokens + prompt.between + question + prompt.after;
  return tokenizer.encode(text, { add_special_tokens: prompt.add_special_tokens }).ids;
}

/** The pixels of an image file, as they are in the file: upright, without colour management. */
export async function decodeImage(file) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  const bitmap = await createImageBitmap(file, options).catch(() => {
    throw new Error(`${file.name ?? "The file"} is not an image that this browser can read.`);
  });
  const { height, width } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  let data = context.getImageData(0, 0, width, height).data;
  if (data.some((value, index) => index % 4 === 3 && value < 255)) {
    data = transparentPixels(bitmap);
  }
  return { data, height, width };
}

// A 2D canvas multiplies colours by their alpha, which loses them. A texture keeps them.
function transparentPixels(bitmap) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(bitmap.height, bitmap.width) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Error(`This browser cannot read an image of ${bitmap.width}×${bitmap.height} pixels, or its ` +
      "transparency. Make it smaller, or save it without transparency.");
  }
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const data = new Uint8Array(4 * bitmap.height * bitmap.width);
  gl.readPixels(0, 0, bitmap.width, bitmap.height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  return data;
}

/** The model. Answers are greedy. */
export class Answerer {
  /**
   * Loads the model that lies beside this file.
   *
   * @param {(loaded: number, total: number) => void} onProgress is told how many bytes are loaded
   */
  static async load(onProgress = () => {}) {
    const answerer = new Answerer();
    const settings = JSON.parse(new TextDecoder().decode(await fetchBytes("model/settings.json")));
    const total = Object.values(settings.sizes).reduce((sum, size) => sum + size);
    let loaded = 0;
    const load = (path) => fetchBytes(path, settings.sizes[path], (count) => {
      loaded += count;
      onProgress(loaded, total);
    });
    const [ort, { Tokenizer }] = await Promise.all(["onnxruntime-web", "tokenizers"].map(importPackage));
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = await load("packages/onnxruntime-web.wasm");
    const graphs = {};
    for (const [name, file] of Object.entries(settings.graphs)) {
      const data = `model/${file}.data`;
      const externalData = data in settings.sizes ? [{ path: `${file}.data`, data: await load(data) }] : [];
      const options = { executionProviders: ["wasm"], externalData };
      graphs[name] = await ort.InferenceSession.create(await load(`model/${file}`), options);
    }
    const [tokenizer, config] = await Promise.all(["tokenizer.json", "tokenizer_config.json"].map(async (name) =>
      JSON.parse(new TextDecoder().decode(await load(`model/${name}`)))));
    return Object.assign(answerer, { settings, ort, graphs, tokenizer: new Tokenizer(tokenizer, config) });
  }

  /** Takes an image file; later questions are about it. Returns its grid and pixels, see `prepareImage`. */
  async setImage(file) {
    this.image = null;
    this.image = prepareImage(await decodeImage(file), this.settings);
    return this.image;
  }

  /** Generates the answer to a question about the image, in pieces: { text, token }. */
  async *answer(question, maxNewTokens = 64) {
    if (!this.image) throw new Error("Choose an image first.");
    const { settings, tokenizer } = this;
    const ids = promptTokens(question, this.image.grid, tokenizer, settings);
    if (ids.length + maxNewTokens > settings.max_length) {
      throw new Error(`The question is too long: with the image it has ${ids.length} tokens, and an answer of up to ` +
        `${maxNewTokens} must fit into ${settings.max_length}.`);
    }
    this.image.features ??= await this.#imageFeatures(this.image);
    let embeddings = await this.#embed(ids);
    const size = embeddings.dims[2];
    const positions = ids.flatMap((id, position) => (id === settings.image_token_id ? [position] : []));
    positions.forEach((position, index) => { // a feature is added to the embedding of its image token
      for (let i = 0; i < size; i++) embeddings.data[position * size + i] += this.image.features[index * size + i];
    });
    let cache = this.graphs.decoder.inputNames.slice(3).map(() => this.#floats([], settings.cache_shape));
    let numTokens = 0, text = "";
    const answer = [];
    while (answer.length < maxNewTokens) {
      const count = embeddings.dims[1];
      const places = Array.from({ length: count }, (_, index) => numTokens + index);
      numTokens += count;
      const mask = this.#integers(Array(numTokens).fill(1), [1, numTokens]);
      const outputs = await this.#run("decoder", embeddings, mask, this.#integers(places, [1, count]), ...cache);
      cache = outputs.slice(1);
      const last = this.#floats(outputs[0].data.slice(-size), [1, 1, size]);
      const token = this.#best((await this.#run("head", last))[0].data);
      if (settings.stops.includes(token)) return;
      answer.push(token);
      const now = tokenizer.decode(answer, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
      const isComplete = !now.endsWith("\ufffd"); // else the next token has the rest of a character
      yield { token, text: isComplete ? now.slice(text.length) : "" };
      if (isComplete) text = now;
      embeddings = await this.#embed([token]);
    }
  }

  // Logits of 0 are those of rows that no token has.
  #best(logits) {
    let best = -1;
    logits.forEach((value, token) => {
      if (value !== 0 && !(value <= logits[best]) && !this.settings.suppressed.includes(token)) best = token;
    });
    return best;
  }

  async #imageFeatures({ grid, pixels }) {
    const size = this.settings.tile_size;
    const shape = [grid.num_encoded, 3, size, size];
    const tiles = this.#floats(pixels.subarray(0, shape.reduce((product, count) => product * count)), shape);
    const count = grid.cell_indices.length;
    const isLast = new this.ort.Tensor("bool", Uint8Array.from(grid.is_last_tile), [count]);
    const [features] = await this.#run("vision", tiles);
    return (await this.#run("connector", features, this.#integers(grid.cell_indices, [count]), isLast))[0].data;
  }

  async #embed(ids) {
    return (await this.#run("embedding", this.#integers(ids, [1, ids.length])))[0];
  }

  #integers(values, shape) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
  }

  #floats(values, shape) {
    return new this.ort.Tensor("float32", Float32Array.from(values), shape);
  }

  async #run(name, ...inputs) {
    const graph = this.graphs[name];
    const feeds = Object.fromEntries(graph.inputNames.map((input, index) => [input, inputs[index]]));
    const outputs = await graph.run(feeds);
    return graph.outputNames.map((output) => outputs[output]);
  }
}

async function importPackage(name) {
  const path = `packages/${name}.js`;
  return import(new URL(path, import.meta.url)).catch((error) => {
    throw new Error(`${path} could not be loaded (${error.message}). Copy the whole folder of the page.`);
  });
}

async function fetchBytes(path, size, onBytes = () => {}) {
  const response = await fetch(new URL(path, import.meta.url)).catch(() => {
    throw new Error(`${path} could not be loaded. Is the web server running?`);
  });
  if (!response.ok) throw new Error(`${path} is missing (${response.status}). Copy the whole folder of the page.`);
  const parts = [];
  for await (const part of readParts(response.body)) {
    parts.push(part);
    onBytes(part.length);
  }
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  if (size !== undefined && bytes.length !== size) {
    throw new Error(`${path} has ${bytes.length} bytes instead of ${size}. Copy the whole folder of the page.`);
  }
  return bytes;
}

// Not all browsers can iterate over a stream.
async function* readParts(stream) {
  const reader = stream.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}
