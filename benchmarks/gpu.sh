#!/usr/bin/env bash
# All that wants an NVIDIA GPU, in at most ten minutes on one of them:
#
#     benchmarks/gpu.sh [FOLDER]
#
# the tests marked `cuda`; speed of the base size (32 px, patch 2, batch 256) in bf16, without and with torch.compile, and
# where a step's time goes and whether the host waits inside; then five minutes of real training, stopped by Ctrl-C,
# continued, and sampled. FOLDER (gpu-results) gets every output. A part that fails is told, and the next one goes on;
# the exit status is their number. DATA=../shared/data/cifar10 trains `cifar10` on that instead of the letters in the
# package. TINY=1 does the same on a CPU with small networks in a few minutes, to see that it runs.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-results}
mkdir -p "$out"
python=${PYTHON:-python}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
failed=0

part() { # NAME SECONDS STATUS COMMAND...: runs it for so long at most, and expects this exit status
    local name=$1 seconds=$2 wanted=$3 begun=$SECONDS status=0
    shift 3
    timeout --kill-after=20 --signal=INT "$((seconds * patience))" "$@" >"$out/$name.out" 2>"$out/$name.err" || status=$?
    if [ "$status" -eq "$wanted" ]; then
        echo "$name: done in $((SECONDS - begun)) s"
    else
        failed=$((failed + 1))
        echo "$name: FAILED with $status after $((SECONDS - begun)) s: $(tail -n 1 "$out/$name.err")"
    fi
}

if [ -n "${TINY:-}" ]; then
    device=cpu marked="not cuda" patience=10 ends=0
    bench=(bench debug --device cpu --precision float32 --batch-size 4 --repeats 1)
    compiled=() # takes minutes on a CPU
    training=(debug --set train.steps=20)
else
    device=cuda marked=cuda patience=1
    bench=(bench cifar10 --device cuda --precision bf16 --batch-size 256 --repeats 5 --perceptual random)
    ends=124 # stopped by a signal: after its step, with a checkpoint
    compiled=(--set train.compile=true)
    training=(conv-letters --set train.steps=1000000)
    if [ -n "${DATA:-}" ]; then training=(cifar10 --data "$DATA"); fi
fi
nvidia-smi >"$out/machine.txt" 2>&1
"$python" -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda, torch.cuda.is_available())" |
    tee -a "$out/machine.txt"
part tests 60 0 "$python" -m pytest -q -p no:cacheprovider -m "$marked" tests/training/test_devices_agree.py
part bench 60 0 "$python" -m spheregen "${bench[@]}" --set train.compile=false --profile
if [ "${#compiled[@]}" -gt 0 ]; then
    part bench-compiled 90 0 "$python" -m spheregen "${bench[@]}" "${compiled[@]}"
fi
for turn in train:300 continue:20; do
    part "${turn%:*}" "${turn#*:}" "$ends" "$python" -m spheregen train "${training[@]}" --device "$device" --out "$out/run"
done
part sample 30 0 "$python" -m spheregen sample "$out/run" -n 16 --device "$device" --out "$out/sample.png"
grep -h "^note: \|^train\|^sample" "$out"/bench*.out
tail -n 1 "$out/run/log.jsonl"
exit "$failed"
