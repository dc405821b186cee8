// The service from JavaScript, in Node or a page: spheregen serve digits
// (a page of another origin needs: spheregen serve digits --cors https://its.origin)
const url = globalThis.process?.argv[2] ?? "http://127.0.0.1:8000";

async function ask(route, body) {
  const answer = await fetch(`${url}/v1/${route}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  return answer;
}

const made = await (await ask("generate", { count: 2, labels: "3", seed: 7 })).json();
console.log(made.images.map((image) => `class ${image.class_name}, seed ${image.seed}`));
// in a page: img.src = `data:image/png;base64,${made.images[0].data}`

// the images after every step
const stream = await ask("generate", { steps: 4, stream: true });
let text = "";
for await (const part of stream.body.pipeThrough(new TextDecoderStream())) {
  text += part;
  const events = text.split("\n\n");
  text = events.pop();
  for (const event of events) {
    const [kind, data] = event.split("\n", 2);
    const told = JSON.parse(data.slice("data: ".length));
    console.log(kind.slice("event: ".length), told.step ?? "", told.images.length);
  }
}
