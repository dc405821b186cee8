// The worker that holds the runtime and the model; the page stays quick while it computes.

import { Model } from "./model.js";

let model = null;
let work = Promise.resolve();

async function unpacked(url) {
  const packed = await (await fetch(url)).arrayBuffer();
  const head = new Uint8Array(packed, 0, 2);
  if (head[0] !== 0x1f || head[1] !== 0x8b) return packed; // the server has unpacked it
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function open(backend, manifest) {
  const here = new URL("./", import.meta.url);
  const [ort, binary] = await Promise.all([
    import(new URL(`runtime/${backend}.js`, here).href),
    unpacked(new URL(`runtime/${backend}.bin`, here)),
  ]);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.wasmPaths = { mjs: new URL(`runtime/${backend}-loader.js`, here).href };
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const sessions = {}; // each is opened when it is first needed
  const opened = async (name) => {
    const data = await (await fetch(new URL(manifest.graphs[name].file, here))).arrayBuffer();
    return ort.InferenceSession.create(data, {
      executionProviders: [backend],
      logSeverityLevel: 3,
      extra: { session: { disable_quant_qdq: "1" } }, // fold small weights once, at the start
    });
  };
  const run = async (graph, inputs) => {
    const session = await (sessions[graph] ??= opened(graph));
    const feeds = {};
    for (const name of session.inputNames) feeds[name] = new ort.Tensor("float32", ...inputs[name]);
    const found = await session.run(feeds);
    return Object.fromEntries(session.outputNames.map((name) => [name, found[name].data]));
  };
  return new Model(run, manifest);
}

async function start(wanted) {
  const manifest = await (await fetch(new URL("manifest.json", import.meta.url))).json();
  const gpu = wanted !== "wasm" && (await self.navigator.gpu?.requestAdapter().catch(() => null));
  const software = gpu?.info?.isFallbackAdapter ?? gpu?.isFallbackAdapter; // slower than WASM
  let backend = gpu && (wanted === "webgpu" || !software) ? "webgpu" : "wasm";
  if (backend === "webgpu") {
    try {
      model = await open("webgpu", manifest);
      const made = await model.generate([{ source: { seed: 0n }, label: null, seed: 0n }], manifest.sampling);
      if (!made.every(Number.isFinite)) throw new Error("numbers that are none");
    } catch (error) {
      console.info(`WebGPU cannot run this model (${error.message}); WASM does`);
      backend = "wasm";
    }
  }
  if (backend === "wasm") model = await open("wasm", manifest);
  return { manifest, backend };
}

const corners = { key: "", found: null };
const CALLS = {
  start: ({ backend }) => start(backend),
  generate: ({ items, settings }) => model.generate(items, settings),
  reconstruct: ({ photo, label, settings }) => model.reconstruct(photo, label, settings),
  edit: ({ photo, label, settings }) => model.edit(photo, label, settings),
  async between({ key, items, places, settings }) {
    if (corners.key !== key) {
      const points = [];
      for (const { source, label } of items) points.push(await model.point(source, label, settings));
      const weights = items.map(({ label }) => model.weights([label]));
      const guided = items.some(({ label }) => label !== null);
      Object.assign(corners, { key, found: { points, weights, guided, seeds: items.map(({ seed }) => seed) } });
    }
    return model.between(corners.found, places, settings);
  },
};

self.onmessage = ({ data: { number, call, values } }) => {
  work = work.then(async () => {
    try {
      self.postMessage({ number, found: await CALLS[call](values) });
    } catch (error) {
      self.postMessage({ number, problem: error.message ?? String(error) });
    }
  });
};
