// Text in PNG files, as `spheregen sample` writes it.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc(bytes) {
  let found = 0xffffffff;
  for (const byte of bytes) found = TABLE[(found ^ byte) & 0xff] ^ (found >>> 8);
  return (found ^ 0xffffffff) >>> 0;
}

function chunk(kind, data) {
  const found = new Uint8Array(12 + data.length);
  const view = new DataView(found.buffer);
  view.setUint32(0, data.length);
  found.set(new TextEncoder().encode(kind), 4);
  found.set(data, 8);
  view.setUint32(8 + data.length, crc(found.subarray(4, 8 + data.length)));
  return found;
}

/** Return a PNG (Uint8Array) with texts by keyword behind its header, as international text (iTXt). */
export function withText(png, texts) {
  const encode = (text) => new TextEncoder().encode(text);
  const head = 8 + 12 + 13; // signature and IHDR
  const chunks = Object.entries(texts).map(([name, text]) => {
    return chunk("iTXt", new Uint8Array([...encode(name), 0, 0, 0, 0, 0, ...encode(text)]));
  });
  return new Blob([png.subarray(0, head), ...chunks, png.subarray(head)], { type: "image/png" });
}
