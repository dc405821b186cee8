#!/usr/bin/env bash
# The service from curl: spheregen serve digits
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
out=${2:-.}

# one image, as a file
curl -sf "$url/v1/generate" --json '{"labels": "3", "seed": 7, "steps": 4, "output": "file"}' -o "$out/three.png"

# towards another class: an image goes in as base64
image=$(base64 < "$out/three.png" | tr -d '\n')
curl -sf "$url/v1/edit" --json "{\"images\": [\"$image\"], \"labels\": \"8\", \"strength\": 0.4, \"output\": \"file\"}" -o "$out/eight.png"

# the steps as they come, as server-sent events
curl -sfN "$url/v1/generate" --json '{"steps": 4, "stream": true}' | grep '^event'

# OpenAI's images API
curl -sf "$url/v1/images/generations" --json '{"prompt": "5", "n": 1}' | python3 -c \
  'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))' > "$out/five.png"
