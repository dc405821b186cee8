"""The service from Python, by the standard library: spheregen serve digits"""

import base64
import json
import sys
import urllib.request
from pathlib import Path

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
OUT = Path(sys.argv[2] if len(sys.argv) > 2 else ".")


def ask(route: str, **body: object) -> dict:
    """Return the answer of a route; with tokens, add the header Authorization: Bearer TOKEN."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/v1/{route}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


made = ask("generate", count=4, labels=["3", "5", "7", "8"], seed=7, steps=4)
for image in made["images"]:
    (OUT / f"{image['class_name']}-{image['seed']}.png").write_bytes(base64.b64decode(image["data"]))

first = made["images"][0]["data"]
points = ask("encode", images=[first])  # an npy file of points on the sphere
again = ask("decode", latents=points["latents"])
between = ask("interpolate", ends=[first, 14], frames=8, format="webp")
print(points["shape"], len(again["images"]), len(between["images"]), made["settings"]["steps"])

# the client of OpenAI works as well: OpenAI(base_url=f"{URL}/v1", api_key="TOKEN").images.generate(prompt="3")
