// A generator over its graphs: the loop of spheregen and its sums; networks and geometry are in the graphs.
// Arrays are Float32Array of B samples each; angles are radians inside and degrees in settings.

import { gaussians, refinementNoise } from "./noise.js";
import { rowOf } from "./texts.js";

const LEAST_REMAINDER = 0.05; // of a flow's path
const EDIT_STRENGTH = 0.25;
const radians = (degrees) => (degrees * Math.PI) / 180;
const size = (shape) => shape.reduce((a, b) => a * b, 1);

export class Model {
  /** @param run (graph, {input: [array, dims]}) -> Promise of arrays by output; @param manifest of the folder. */
  constructor(run, manifest) {
    this.run = run;
    this.manifest = manifest;
    this.latent = size(manifest.latent_shape);
    this.image = size(manifest.image_shape);
    this.width = (manifest.text?.width ?? manifest.num_classes) + 1; // of a condition, the null last
    this.has = (graph) => graph in manifest.graphs;
  }

  // graphs --------------------------------------------------------------------------------------------------------

  async call(graph, inputs) {
    const shapes = this.manifest.graphs[graph].inputs;
    const feeds = {};
    for (const [name, shape] of Object.entries(shapes)) {
      const data = inputs[name];
      const one = size(shape.slice(1));
      feeds[name] = [data, [data.length / one, ...shape.slice(1)]];
    }
    return this.run(graph, feeds);
  }

  async first(graph, inputs) {
    return (await this.call(graph, inputs))[this.manifest.graphs[graph].outputs[0]];
  }

  each(value, count) {
    return new Float32Array(count).fill(value);
  }

  place(latents, noise = new Float32Array(latents.length), turn = 0) {
    return this.first("place", { latents, noise, turn: this.each(turn, latents.length / this.latent) });
  }

  encodeRaw(images, condition) {
    return this.first("encoder", { images, condition });
  }

  drawn(noise, weights, temperature) {
    return this.first("draw", { noise, weights, temperature: this.each(temperature, 1) });
  }

  /** Shares of the classes of ids, or vectors of prompts (null: the null class), one row each. */
  weights(ids) {
    const { width } = this;
    const found = new Float32Array(ids.length * width);
    ids.forEach((id, row) => {
      if (typeof id === "string") found.set(rowOf(id, width - 1, this.manifest.text.tokens ?? 0), row * width);
      else found[row * width + (id ?? width - 1)] = 1;
    });
    return found;
  }

  // points --------------------------------------------------------------------------------------------------------

  /** The noise of a seed after steps [seed, degrees] away from it. */
  noiseOf(seed, path = []) {
    let [noise] = gaussians(seed, this.latent);
    for (const [other, degrees] of path) noise = turned(noise, gaussians(other, this.latent)[0], radians(degrees));
    return noise;
  }

  /** Raw latents, the noise that moves them, its angle and the one that the network is told, of one source.
   *  A source is {seed, path} or {photo, path}, a photo being an image in [-1, 1]. */
  async start(source, id, settings) {
    const weights = this.weights([id]);
    const zero = new Float32Array(this.latent);
    const told = radians(this.manifest.start_angle);
    const fitted = settings.prior === "fitted";
    if (source.photo) {
      const point = await this.place(await this.encodeRaw(source.photo, weights));
      if (!source.path?.length) return { latents: point, noise: zero, turn: 0, told };
      if (fitted) {
        let noise = await this.first("undraw", { latents: point, weights });
        for (const [other, degrees] of source.path) {
          noise = turned(noise, gaussians(other, this.latent)[0], radians(degrees));
        }
        return { latents: await this.drawn(noise, weights, 1), noise: zero, turn: 0, told };
      }
      let points = point;
      for (const [other, degrees] of source.path) {
        const towards = gaussians(other, this.latent)[0];
        points = await this.first("vary", { points, towards, angle: this.each(radians(degrees), 1) });
      }
      return { latents: points, noise: zero, turn: 0, told };
    }
    const noise = this.noiseOf(source.seed, source.path);
    if (!fitted) return { latents: noise, noise, turn: 0, told };
    const turn = radians(settings.prior_angle);
    return { latents: await this.drawn(noise, weights, settings.temperature), noise, turn, told: turn };
  }

  /** The point on the sphere of a source. */
  async point(source, id, settings) {
    const { latents, noise, turn } = await this.start(source, id, settings);
    return this.place(latents, noise, turn);
  }

  // making images -------------------------------------------------------------------------------------------------

  /** Images of sources [{source, label, seed}], in [-1, 1]; label null is the null class. */
  async generate(items, settings) {
    const starts = [];
    for (const { source, label } of items) starts.push(await this.start(source, label, settings));
    const ids = items.map((each) => each.label);
    return this.sample(starts, this.weights(ids), ids.some((id) => id !== null), items.map((each) => each.seed), settings);
  }

  /** Images of points between four corners {points, weights, seeds}, at places [x, y] from 0 to 1. */
  async between(corners, places, settings) {
    const t = (axis) => new Float32Array(places.map((place) => place[axis]));
    const join = (a, b, at) => this.first("between", { a, b, t: at });
    const wide = corners.points.map((point) => repeated(point, places.length));
    const upper = await join(wide[0], wide[1], t(0));
    const lower = await join(wide[2], wide[3], t(0));
    const points = await join(upper, lower, t(1));
    const shares = places.map(([x, y]) => [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y]);
    const weights = joined(shares.map((share) => combined(corners.weights, share)));
    const noises = corners.seeds.map((seed) => gaussians(seed, this.latent, 2)[1]);
    const steps = shares.map((share) => balanced(noises, share));
    const told = radians(this.manifest.start_angle);
    const starts = places.map((_, i) => {
      const latents = points.slice(i * this.latent, (i + 1) * this.latent);
      return { latents, noise: new Float32Array(this.latent), turn: 0, told };
    });
    return this.sample(starts, weights, corners.guided, places.map(() => corners.seeds[0]), settings, steps);
  }

  /** A photo there and back, and the share of its variance that is kept. */
  async reconstruct(photo, label, settings) {
    const weights = this.weights([label]);
    const latents = await this.encodeRaw(photo, weights);
    const loop = new Loop(this, weights, false, { ...settings, guidance: this.manifest.unguided });
    const found = await loop.predict(latents, new Float32Array(this.latent), 0, 0);
    const images = await this.finished(loop, found, [settings.seed], settings, false);
    const mean = photo.reduce((a, b) => a + b, 0) / photo.length;
    let error = 0;
    let variance = 0;
    photo.forEach((value, i) => {
      error += (value - images[i]) ** 2;
      variance += (value - mean) ** 2;
    });
    return { images, kept: 1 - error / (variance + 1e-3 * photo.length) };
  }

  /** A photo pulled towards a class. */
  async edit(photo, label, settings) {
    const weights = this.weights([label]);
    const told = radians(this.manifest.start_angle);
    const zero = new Float32Array(this.latent);
    if (settings.prior === "fitted" && label !== null) {
      const none = this.weights([null]);
      const code = await this.place(await this.encodeRaw(photo, none));
      const noise = await this.first("undraw", { latents: code, weights: none });
      const latents = await this.drawn(noise, weights, settings.temperature);
      const how = { ...settings, steps: 1, strength: EDIT_STRENGTH, schedule: "fixed" };
      return this.sample([{ latents, noise: zero, turn: 0, told }], weights, true, [settings.seed], how);
    }
    const how = { ...settings, steps: 4, strength: EDIT_STRENGTH, schedule: "fixed" };
    const loop = new Loop(this, weights, label !== null, how);
    const start = this.manifest.predicts === "images" ? photo : await this.encodeRaw(photo, weights);
    const noise = gaussians(settings.seed, this.latent, 2)[1];
    const found = await loop.steps(repeated(start, loop.streams), stepAngles(how, this.manifest.alpha_max, 0), [noise]);
    return this.finished(loop, found, [settings.seed], how, label !== null);
  }

  // the loop ------------------------------------------------------------------------------------------------------

  async sample(starts, weights, guided, seeds, settings, noises = null) {
    const angles = stepAngles(settings, this.manifest.alpha_max, 1);
    const loop = new Loop(this, weights, guided, settings);
    const latents = joined(starts.map((each) => each.latents));
    const noise = joined(starts.map((each) => each.noise));
    const reuses = this.manifest.reuses_noise && settings.share_noise && noises === null;
    const drawn = noises ?? (reuses || !angles.length ? [] : seeds.map((seed) => gaussians(seed, this.latent, 2)[1]));
    const streams = angles.length ? loop.streams : 1;
    const { turn, told } = starts[0];
    const first = await loop.predict(repeated(latents, streams), repeated(noise, streams), turn, told);
    const found = await loop.steps(first, angles, [reuses ? latents : joined(drawn)]);
    return this.finished(loop, found, seeds, settings, guided);
  }

  async finished(loop, prediction, seeds, settings, guided) {
    let images = prediction;
    if (this.manifest.predicts === "latents") images = await this.first("pixels", { prediction });
    images = images.map(clamped);
    if (!this.manifest.refiner || !settings.refinement_steps) return images;
    return this.refined(loop, images, seeds, settings, guided);
  }

  async refined(loop, rough, seeds, settings, classed) {
    const { rho, guided: able } = this.manifest.refiner;
    const scale = settings.refinement_guidance ?? (this.manifest.unguided === 1 ? settings.guidance : 1);
    const guided = scale !== 1 && able && classed;
    const none = this.weights(seeds.map(() => null));
    const condition = guided ? joined([loop.weights, none]) : loop.weights;
    const twice = (x) => (guided ? joined([x, x]) : x);
    const extra = Object.fromEntries(Object.entries(loop.context).map(([name, value]) => [name, twice(value)]));
    const end = async (x, t) => {
      const wide = twice(x);
      const times = this.each(t, wide.length / this.image);
      const found = await this.first("refiner", { x: wide, times, condition, rough: twice(rough), ...extra });
      return guided ? mixed(found, scale) : found;
    };
    const noise = joined(seeds.map((seed) => refinementNoise(seed, this.image)));
    const steps = settings.refinement_steps;
    let x = noise.map((value, i) => rho * value + (1 - rho) * rough[i]);
    for (let number = 0; number < steps - 1; number++) {
      const [t, to] = [number / steps, (number + 1) / steps];
      const slope = async (at, time) => {
        const reached = await end(at, time);
        return reached.map((value, i) => (value - at[i]) / Math.max(1 - time, LEAST_REMAINDER));
      };
      const first = await slope(x, t);
      const moved = (by, along) => x.map((value, i) => value + by * along[i]);
      if (settings.solver === "euler") x = moved(to - t, first);
      else if (settings.solver === "midpoint") x = moved(to - t, await slope(moved((to - t) / 2, first), (t + to) / 2));
      else {
        const second = await slope(moved(to - t, first), to);
        x = moved((to - t) / 2, first.map((value, i) => value + second[i]));
      }
    }
    return (await end(x, (steps - 1) / steps)).map(clamped);
  }
}

/** A generator under its condition and guidance. */
class Loop {
  constructor(model, weights, guided, settings) {
    const { manifest } = model;
    this.model = model;
    this.weights = weights;
    this.count = weights.length / model.width;
    this.both = joined([weights, model.weights(Array(this.count).fill(null))]);
    this.images = manifest.predicts === "images";
    this.context = {};
    const amount = guided ? settings.guidance : manifest.unguided;
    const active = amount !== manifest.unguided;
    this.rotation = active && manifest.guidance_law === "rotation" ? radians(amount) : 0;
    this.streams = this.rotation ? 2 : 1;
    const places = settings.guidance_at === "both" ? manifest.guidance_places : [settings.guidance_at];
    const scale = active && !this.rotation ? amount : 1;
    const each = places.length === 1 ? scale : Math.sqrt(scale);
    this.pixelScale = places.includes("pixel") ? each : 1;
    this.latentScale = places.includes("latent") ? each : 1;
  }

  async predict(latents, noise, turn, told) {
    const { model } = this;
    const scale = this.images ? this.pixelScale : this.latentScale;
    let condition = latents.length > this.count * model.latent ? this.both : this.weights;
    if (scale !== 1) {
      latents = joined([latents, latents]);
      noise = joined([noise, noise]);
      condition = this.both;
    }
    const wide = latents.length / model.latent;
    const inputs = { latents, noise, condition, turn: model.each(turn, wide), told: model.each(told, wide) };
    const { prediction, ...context } = await model.call("decoder", inputs);
    for (const [name, value] of Object.entries(context)) {
      this.context[name] = value.slice(0, (value.length / wide) * this.count);
    }
    if (scale === 1) return prediction;
    const found = mixed(prediction, scale);
    return this.images ? found.map(clamped) : found;
  }

  async toLatent(prediction) {
    const { model } = this;
    let raw = prediction;
    if (this.images && this.rotation) raw = await model.encodeRaw(prediction, this.both);
    else if (this.images && this.latentScale === 1) raw = await model.encodeRaw(prediction, this.weights);
    else if (this.images) {
      raw = mixed(await model.encodeRaw(joined([prediction, prediction]), this.both), this.latentScale);
    }
    if (!this.rotation) return raw;
    const half = raw.length / 2;
    const points = await model.place(raw);
    const angle = model.each(this.rotation, this.count);
    const away = await model.first("away", { points: points.slice(0, half), reference: points.slice(half), angle });
    return joined([away, raw.slice(half)]);
  }

  async steps(prediction, angles, noises) {
    for (const [number, angle] of angles.entries()) {
      const streams = number + 1 === angles.length ? 1 : this.streams;
      const noise = repeated(noises[Math.min(number, noises.length - 1)], streams);
      const latents = (await this.toLatent(prediction)).slice(0, noise.length);
      prediction = await this.predict(latents, noise, angle, angle);
    }
    return prediction.slice(0, (prediction.length / this.streamsOf(prediction)) | 0);
  }

  streamsOf(prediction) {
    const one = this.images ? this.model.image : this.model.latent;
    return prediction.length / (one * this.count);
  }
}

function stepAngles(settings, largest, clean) {
  const { schedule, strength } = settings;
  const steps = settings.steps + 1 - clean;
  const top = radians(largest);
  const scaled = (angle, by) => Math.atan2(by * Math.sin(angle), Math.cos(angle));
  const shares = { fixed: () => top, decay: (t) => scaled(top, 1 - t / steps), angle: (t) => top * (1 - t / steps) };
  const found = [];
  for (let t = 1; t < steps; t++) {
    const named = typeof schedule === "string" ? shares[schedule](t) : scaled(top, schedule[Math.min(t, schedule.length) - 1]);
    found.push(strength === 1 ? named : scaled(named, strength));
  }
  return found;
}

const clamped = (value) => Math.min(1, Math.max(-1, value));

function turned(noise, other, angle) {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return noise.map((value, i) => cos * value + sin * other[i]);
}

function joined(parts) {
  const found = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    found.set(part, place);
    place += part.length;
  }
  return found;
}

function repeated(part, count) {
  return count === 1 ? part : joined(Array(count).fill(part));
}

function mixed(pair, scale) {
  const half = pair.length / 2;
  return pair.slice(0, half).map((value, i) => pair[half + i] + scale * (value - pair[half + i]));
}

function combined(parts, share) {
  return parts[0].map((_, i) => parts.reduce((sum, part, k) => sum + share[k] * part[i], 0));
}

/** A mixture of Gaussians that is one itself. */
function balanced(parts, share) {
  const length = Math.sqrt(share.reduce((sum, value) => sum + value * value, 0));
  return combined(parts, share.map((value) => value / length));
}
