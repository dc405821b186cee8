// The vector of a prompt, as `spheregen.texts.ngram_vectors` makes it: words, pairs of words and pieces of words, hashed
// with signs. Letters that a browser and Python write small in different ways are rare; ß and ς are none of them.

const SHARES = { word: 1, pair: 0.5, piece: 0.5 };
const PIECES = [3, 4];
const TOKEN = /[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]/gu;
const MOST_CHARACTERS = 10_000;

/** The vector of a text and those of its first words, `width` numbers in all, as `spheregen.texts.ngram_tokens`. */
export function rowOf(text, width, tokens) {
  const each = width / (1 + tokens);
  const words = (text.normalize("NFKC").match(TOKEN) ?? []).slice(0, tokens);
  const found = new Float32Array(width);
  [text, ...words].forEach((part, i) => found.set(vectorOf(part, each), i * each));
  return found;
}

/** The vector (Float32Array of `width`) of a text, of length 1. */
export function vectorOf(text, width) {
  const letters = Array.from(text);
  if (letters.length > MOST_CHARACTERS) throw new Error(`A prompt has at most ${MOST_CHARACTERS} characters.`);
  const found = new Float32Array(width);
  for (const [kind, features] of Object.entries(parts(text))) {
    const weight = Math.fround(Math.sqrt(SHARES[kind] / features.length));
    for (const feature of features) {
      const { number, sign } = place(feature);
      found[Number(number % BigInt(width))] += sign * weight;
    }
  }
  const length = Math.hypot(...found) || 1;
  return found.map((value) => value / length);
}

function parts(text) {
  const words = text.normalize("NFKC").match(TOKEN) ?? [];
  const small = words.map((word) => Array.from(word, (letter) => letter.toLowerCase()).join("").replaceAll("ß", "ss").replaceAll("ς", "σ"));
  const written = words.filter((word, i) => word !== small[i]).map((word) => `c ${word}`);
  const pieces = [];
  for (const word of small.map((each) => Array.from(each)).filter((each) => each.length > 1)) {
    const marked = ["<", ...word, ">"];
    for (const n of PIECES) {
      for (let i = 0; i + n <= marked.length; i++) pieces.push(`n ${marked.slice(i, i + n).join("")}`);
    }
  }
  const pairs = small.slice(1).map((word, i) => `p ${small[i]} ${word}`);
  return { word: [...small.map((word) => `w ${word}`), ...written], pair: pairs, piece: pieces };
}

const places = new Map();

function place(feature) {
  if (!places.has(feature)) {
    const number = blake2b(new TextEncoder().encode(feature));
    places.set(feature, { number: number >> 2n, sign: number & 1n ? 1 : -1 });
  }
  return places.get(feature);
}

// BLAKE2b of 8 bytes (RFC 7693), as one little-endian number ---------------------------------------------------------

const MASK = (1n << 64n) - 1n;
const START = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const ORDERS = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
  "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((order) => Array.from(order, (digit) => parseInt(digit, 16)));
const COLUMNS = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15], [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];

function blake2b(data) {
  const h = [...START];
  h[0] ^= 0x01010008n;
  const blocks = Math.max(1, Math.ceil(data.length / 128));
  for (let block = 0; block < blocks; block++) {
    const bytes = new Uint8Array(128);
    bytes.set(data.subarray(128 * block, 128 * (block + 1)));
    const view = new DataView(bytes.buffer);
    const m = Array.from({ length: 16 }, (_, i) => view.getBigUint64(8 * i, true));
    const v = [...h, ...START];
    v[12] ^= BigInt(Math.min(data.length, 128 * (block + 1)));
    if (block + 1 === blocks) v[14] ^= MASK;
    const turn = (x, by) => ((x >> by) | (x << (64n - by))) & MASK;
    for (let round = 0; round < 12; round++) {
      const order = ORDERS[round % 10];
      for (const [i, [a, b, c, d]] of COLUMNS.entries()) {
        for (const [x, first, second] of [[m[order[2 * i]], 32n, 24n], [m[order[2 * i + 1]], 16n, 63n]]) {
          v[a] = (v[a] + v[b] + x) & MASK;
          v[d] = turn(v[d] ^ v[a], first);
          v[c] = (v[c] + v[d]) & MASK;
          v[b] = turn(v[b] ^ v[c], second);
        }
      }
    }
    for (let i = 0; i < 8; i++) h[i] ^= v[i] ^ v[i + 8];
  }
  return h[0];
}
