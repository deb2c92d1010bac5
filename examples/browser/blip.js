// What `openblip export` wrote, in the browser: captions by beam search, and matches.

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

/** The model of a folder, by its address. */
export async function open(folder) {
  const read = async (name) => {
    const answer = await fetch(`${folder}/${name}`);
    if (!answer.ok) throw new Error(`${folder}/${name}: ${answer.status} ${answer.statusText}`);
    return answer;
  };
  const about = await (await read("openblip.json")).json();
  const tokenizer = new Tokenizer(await (await read("tokenizer.json")).json(), {});
  // All graphs have their weights in one file, of which each takes what it needs.
  const data = new Uint8Array(await (await read("weights.bin")).arrayBuffer());
  const sessions = new Map();
  const session = async (name) => {
    if (!sessions.has(name)) {
      const graph = await (await read(`${name}.onnx`)).arrayBuffer();
      const options = { externalData: [{ path: "weights.bin", data }] };
      sessions.set(name, await ort.InferenceSession.create(graph, options));
    }
    return sessions.get(name);
  };
  return new Blip(about, tokenizer, session);
}

class Blip {
  constructor(about, tokenizer, session) {
    Object.assign(this, { about, tokenizer, session });
    this.writes = "decoder" in about.memory;
    this.matches = "matcher" in about.memory;
  }

  /** The outputs of a graph; its inputs are in the order of `openblip.json`. */
  async run(name, inputs) {
    const { inputs: ports, outputs } = this.about.graphs[name];
    const feeds = Object.fromEntries(ports.map((port, place) => [port.name, inputs[place]]));
    const found = await (await this.session(name)).run(feeds);
    return outputs.map((port) => found[port.name]);
  }

  /** States of a picture: of a file or a blob. */
  async encode(blob) {
    const { image_size: size, mean, std } = this.about.preprocess;
    const pixels = resized(await decoded(blob), size);
    const plane = size * size;
    const values = Float32Array.from({ length: 3 * plane }, (_, at) => {
      const channel = Math.floor(at / plane);
      return (pixels[3 * (at % plane) + channel] / 255 - mean[channel]) / std[channel];
    });
    const tensor = new ort.Tensor("float32", values, [1, 3, size, size]);
    return (await this.run("image_encoder", [tensor]))[0];
  }

  /** The best text that beam search finds about an encoded picture. */
  async caption(states) {
    const { prompt_ids: prompt, num_beams: beams, max_length, min_length, special } = this.about.text;
    const memory = await this.run(this.about.memory.decoder, [states]);
    const [, , heads, , width] = this.about.graphs.decoder.inputs.at(-1).shape;
    let past = memory.map(() => new ort.Tensor("float32", [], [1, beams, heads, 0, width]));
    let rows = Array(beams).fill(prompt);
    let scores = Array.from({ length: beams }, (_, beam) => (beam ? -1e9 : 0));
    let ended = [];
    const step = async (ids) => {
      const [logits, ...present] = await this.run("decoder", [whole(ids), ...memory, ...past]);
      past = present;
      return logits;
    };
    let logits = await step(rows);
    for (let length = prompt.length; length < max_length; length++) {
      const closed = length < min_length ? special.sep : -1;
      const best = candidates(logits, scores, closed, 2 * beams);
      for (const { score, row, id } of best.slice(0, beams)) {
        if (id === special.sep) ended.push({ score: score / length, ids: rows[row] });
      }
      ended = ended.sort((one, other) => other.score - one.score).slice(0, beams);
      if (ended.length === beams && ended.at(-1).score >= best[0].score / length) {
        return this.written(ended);
      }
      const going = best.filter(({ id }) => id !== special.sep).slice(0, beams);
      rows = going.map(({ row, id }) => [...rows[row], id]);
      scores = going.map(({ score }) => score);
      past = past.map((tensor) => selected(tensor, going.map(({ row }) => row)));
      logits = await step(rows.map((row) => row.slice(-1)));
    }
    ended.push(...rows.map((ids, row) => ({ score: scores[row] / ids.length, ids })));
    return this.written(ended);
  }

  written(texts) {
    const best = texts.reduce((one, other) => (other.score > one.score ? other : one));
    const ids = best.ids.slice(this.about.text.prompt_ids.length);
    return this.tokenizer.decode(ids, { skip_special_tokens: true }).trim();
  }

  /** The probability that a text describes an encoded picture. */
  async match(states, text) {
    const { first, last, room } = this.about.text;
    const { ids: pieces } = this.tokenizer.encode(text, { add_special_tokens: false });
    const ids = [first.match, ...pieces.slice(0, room), ...last];
    const mask = new ort.Tensor("bool", ids.map(() => true), [1, 1, ids.length]);
    const memory = await this.run(this.about.memory.matcher, [states]);
    const [logits] = await this.run("matcher", [whole([ids]), mask, ...memory]);
    return 1 / (1 + Math.exp(logits.data[0] - logits.data[1]));
  }
}

/** Rows of ids, all about one picture, as a tensor. */
function whole(rows) {
  return new ort.Tensor("int64", rows.flat().map(BigInt), [1, rows.length, rows[0].length]);
}

/** The texts of a cache (1, texts, ...) in another order; one may come several times. */
function selected(tensor, order) {
  const size = tensor.data.length / tensor.dims[1];
  const data = new Float32Array(size * order.length);
  order.forEach((row, place) => {
    data.set(tensor.data.subarray(row * size, (row + 1) * size), place * size);
  });
  return new ort.Tensor("float32", data, [1, order.length, ...tensor.dims.slice(2)]);
}

/** The most likely continuations of all beams by one token, best first. */
function candidates(logits, scores, closed, count) {
  const [, beams, tokens, vocabulary] = logits.dims;
  const found = [];
  for (let row = 0; row < beams; row++) {
    const start = (row * tokens + tokens - 1) * vocabulary;
    const last = logits.data.subarray(start, start + vocabulary);
    const largest = last.reduce((one, other) => Math.max(one, other));
    const sum = last.reduce((total, value) => total + Math.exp(value - largest), 0);
    const norm = largest + Math.log(sum);
    last.forEach((value, id) => {
      const score = id === closed ? -Infinity : scores[row] + value - norm;
      if (found.length === count && score <= found.at(-1).score) return;
      found.splice(found.findIndex((each) => each.score < score) >>> 0, 0, { score, row, id });
      found.length = Math.min(found.length, count);
    });
  }
  return found;
}

/** Red, green and blue of every pixel, as the file has them. */
async function decoded(blob) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options);
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  // What is transparent is seen over white, as the package reads it.
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return { width, height, data: data.filter((_, at) => at % 4 < 3) };
}

/** A picture as a square, by the same bicubic filter, to the bit, that Pillow has. */
function resized({ width, height, data }, size) {
  const wide = filtered(data, height, weights(width, size), 3, 3 * width, 3 * size);
  return filtered(wide, size, weights(height, size), 3 * size, 3, 3);
}

/** Along one axis: `lines` lines, whose pixels stand `step` apart. */
function filtered(data, lines, columns, step, fromLine, toLine) {
  const out = new Uint8ClampedArray(lines * columns.length * 3);
  for (let line = 0; line < lines; line++) {
    columns.forEach(({ first, parts }, column) => {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** 21;
        parts.forEach((part, at) => {
          sum += data[line * fromLine + (first + at) * step + channel] * part;
        });
        out[line * toLine + column * step + channel] = Math.floor(sum / 2 ** 22);
      }
    });
  }
  return out;
}

/** For each pixel of `size` which of `length` it is made of, in 22 bits as Pillow computes. */
function weights(length, size) {
  const scale = length / size;
  const wide = Math.max(scale, 1);
  return Array.from({ length: size }, (_, pixel) => {
    const center = (pixel + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 2 * wide + 0.5));
    const end = Math.min(length, Math.trunc(center + 2 * wide + 0.5));
    const raw = Array.from({ length: end - first }, (_, at) =>
      bicubic((at + first - center + 0.5) / wide));
    const total = raw.reduce((one, other) => one + other, 0);
    const parts = raw.map((part) => {
      const exact = (part / total) * 2 ** 22;
      return Math.trunc(exact + (exact < 0 ? -0.5 : 0.5));
    });
    return { first, parts };
  });
}

function bicubic(x) {
  const at = Math.abs(x);
  if (at < 1) return (1.5 * at - 2.5) * at * at + 1;
  return at < 2 ? (((at - 5) * at + 8) * at - 4) * -0.5 : 0;
}
