// The noise of a seed, as spheregen draws it: mt19937, and the normal law in the order of torch's generator of a CPU.
// Seeds are whole numbers from 0 to 2^63 - 1, as BigInt.

const WORD = 1n << 32n;
const BLOCK = 16;
export const SEED_LIMIT = 1n << 63n;

class Words {
  constructor(seed) {
    const state = new Uint32Array(624);
    state[0] = seed;
    for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    this.state = state;
    this.place = 624;
    this.left = null; // the Gaussian that a pair of uniforms left over
  }

  next() {
    const s = this.state;
    if (this.place === 624) {
      for (let i = 0; i < 624; i++) {
        const mixed = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
        s[i] = s[(i + 397) % 624] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
      }
      this.place = 0;
    }
    let y = s[this.place++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  uniform() {
    return (this.next() & 0xffffff) / 2 ** 24;
  }

  wide() {
    const first = this.next() & 0x1fffff;
    return (first * 2 ** 32 + this.next()) / 2 ** 53;
  }
}

function fillBlock(out, start, words) {
  const uniform = Array.from({ length: BLOCK }, () => words.uniform());
  writePairs(out, start, uniform);
}

function writePairs(out, start, uniform) {
  for (let i = 0; i < BLOCK / 2; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform[i]));
    const angle = 2 * Math.PI * uniform[i + BLOCK / 2];
    out[start + i] = radius * Math.cos(angle);
    out[start + i + BLOCK / 2] = radius * Math.sin(angle);
  }
}

function draw(words, count) {
  const out = new Float32Array(count);
  if (count < BLOCK) {
    for (let i = 0; i < count; i++) {
      if (words.left === null) {
        const angle = 2 * Math.PI * words.wide();
        const radius = Math.sqrt(-2 * Math.log1p(-words.wide()));
        out[i] = radius * Math.cos(angle);
        words.left = radius * Math.sin(angle);
      } else {
        out[i] = words.left;
        words.left = null;
      }
    }
    return out;
  }
  const uniform = Array.from({ length: count }, () => words.uniform());
  const whole = count - (count % BLOCK);
  for (let start = 0; start < whole; start += BLOCK) writePairs(out, start, uniform.slice(start, start + BLOCK));
  if (whole < count) fillBlock(out, count - BLOCK, words); // the last block begins anew
  return out;
}

function draws(seed, size, count) {
  const words = new Words(Number(seed));
  return Array.from({ length: count }, () => draw(words, size));
}

/** The first `count` draws of a seed, each of `size` numbers. */
export function gaussians(seed, size, count = 1) {
  let word = BigInt(seed);
  if (word < WORD) return draws(word, size, count);
  const mask = (1n << 64n) - 1n;
  word = ((word ^ (word >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
  word = ((word ^ (word >> 27n)) * 0x94d049bb133111ebn) & mask;
  word ^= word >> 31n;
  const low = draws(word % WORD, size, count);
  return draws(word / WORD, size, count).map((high, i) =>
    high.map((value, j) => Math.fround(Math.fround(0.6) * value) + Math.fround(Math.fround(0.8) * low[i][j])),
  );
}

/** The noise from which the flow of a seed starts. */
export function refinementNoise(seed, size) {
  const word = blake2b8(new TextEncoder().encode(`${seed} refinement`)) >> 1n;
  return gaussians(word % WORD, size)[0];
}

const IV = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const SIGMA = [
  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
  [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4], [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
  [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13], [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
  [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11], [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
  [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5], [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

/** BLAKE2b of up to 128 bytes to 8, as a little-endian number (RFC 7693). */
export function blake2b8(bytes) {
  const mask = (1n << 64n) - 1n;
  const block = new Uint8Array(128);
  block.set(bytes);
  const view = new DataView(block.buffer);
  const m = Array.from({ length: 16 }, (_, i) => view.getBigUint64(8 * i, true));
  const h = [...IV];
  h[0] ^= 0x01010000n ^ 8n;
  const v = [...h, ...IV];
  v[12] ^= BigInt(bytes.length);
  v[14] ^= mask;
  const turn = (x, by) => ((x >> by) | (x << (64n - by))) & mask;
  const mix = (a, b, c, d, x, y) => {
    v[a] = (v[a] + v[b] + x) & mask;
    v[d] = turn(v[d] ^ v[a], 32n);
    v[c] = (v[c] + v[d]) & mask;
    v[b] = turn(v[b] ^ v[c], 24n);
    v[a] = (v[a] + v[b] + y) & mask;
    v[d] = turn(v[d] ^ v[a], 16n);
    v[c] = (v[c] + v[d]) & mask;
    v[b] = turn(v[b] ^ v[c], 63n);
  };
  for (let round = 0; round < 12; round++) {
    const s = SIGMA[round % 10];
    for (let i = 0; i < 4; i++) mix(i, i + 4, i + 8, i + 12, m[s[2 * i]], m[s[2 * i + 1]]);
    for (let i = 0; i < 4; i++) {
      mix(i, 4 + ((i + 1) % 4), 8 + ((i + 2) % 4), 12 + ((i + 3) % 4), m[s[8 + 2 * i]], m[s[9 + 2 * i]]);
    }
  }
  return h[0] ^ v[0] ^ v[8];
}
