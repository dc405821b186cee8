// Keeps the page and the model of this export, so that it opens without a network.

const NAME = "spheregen-VERSION_OF_THE_EXPORT";
const FILES = [
  "./",
  // FILES_OF_THE_EXPORT
];

self.addEventListener("install", (event) => {
  event.waitUntil(
    caches
      .open(NAME)
      .then((cache) => cache.addAll(FILES.filter((name) => !name.startsWith("./runtime/webgpu"))))
      .then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => {
  const others = (names) => names.filter((name) => name.startsWith("spheregen-") && name !== NAME);
  event.waitUntil(
    caches
      .keys()
      .then((names) => Promise.all(others(names).map((name) => caches.delete(name))))
      .then(() => self.clients.claim()),
  );
});

// The network first, so that another export, or another page at this address, is never hidden.
self.addEventListener("fetch", (event) => {
  const { request } = event;
  const ours = FILES.some((name) => new URL(name, self.location).href === request.url.split(/[?#]/)[0]);
  if (request.method !== "GET" || !ours) return;
  const fresh = async () => {
    const found = await fetch(request);
    if (found.ok) (await caches.open(NAME)).put(request, found.clone());
    return found;
  };
  event.respondWith(fresh().catch(async () => (await caches.match(request, { ignoreSearch: true })) ?? Response.error()));
});
