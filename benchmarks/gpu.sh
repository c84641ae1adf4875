#!/usr/bin/env bash
# All the work that needs a GPU, one stage a call, each within nine minutes:
#
#   benchmarks/gpu.sh parity          every fast path beside its slow twin, and the demo
#   benchmarks/gpu.sh limits          what the card can do
#   benchmarks/gpu.sh ladder 2048     Llama 3.2-1B from naive to best (call again until it says done: it goes on)
#   benchmarks/gpu.sh best 2048       50 steps of the best rung, its waterfall, and its prediction
#   benchmarks/gpu.sh peers           transformers beside yupana, interleaved
#
# Results go to $OUT (docs/results/gpu). PYTHON, MODEL, BATCH, RUNGS and EXTRA (settings of yupana train) can be set: the
# control flow is tested on a CPU with a small model (tests/test_gpu_script.py).
set -euo pipefail
cd "$(dirname "$0")/.."
STAGE=${1:?stage: parity, limits, ladder, best or peers}
SEQ=${2:-2048}
PYTHON=${PYTHON:-python3}
MODEL=${MODEL:-llama3.2-1b}
TOKENS=${TOKENS:-32768}                     # a step, so that both lengths do the same work
BATCH=${BATCH:-$((TOKENS / SEQ))}
OUT=${OUT:-docs/results/gpu}
KEEP=runs/gpu                               # stays on the machine between calls
export PYTHONPATH=src
mkdir -p "$OUT" "$KEEP"
yupana() { "$PYTHON" -m yupana "$@"; }
# Bytes where Llama's tokenizer is not installed: a step costs the same whatever the tokens are.
TOKENIZER=$("$PYTHON" -c 'import llama_models.llama3; print("llama3")' 2>/dev/null || echo bytes)
SETTINGS=(--data.tokenizer "${TOKENIZER_OVERRIDE:-$TOKENIZER}" --data.seq_len "$SEQ" --train.global_batch "$BATCH")
SETTINGS+=(--optim.warmup_steps 5)
read -r -a MORE <<< "${EXTRA:-}"
SETTINGS+=("${MORE[@]}")

case $STAGE in
parity)
    "$PYTHON" -m pytest -q -m gpu tests
    rm -rf "$KEEP/demo"
    yupana train 7m --run "$KEEP/demo" --json > "$OUT/demo.json"
    ;;
limits)
    yupana flops limits --out "$KEEP/limits.json"
    cp "$KEEP/limits.json" "$OUT/"
    ;;
ladder)
    timeout "${SECONDS_A_CALL:-520}" "$PYTHON" -m yupana flops ladder "$MODEL" "${SETTINGS[@]}" --steps "${STEPS:-12}" \
        --micro_batch "${FIRST:-$((BATCH / 8 > 0 ? BATCH / 8 : 1))}" --out "$KEEP/ladder-$SEQ" ${RUNGS:+--rungs "$RUNGS"} \
        --save "$OUT/ladder-$SEQ.png" --write "$OUT/best-$SEQ.yaml" --json > "$OUT/ladder-$SEQ.json" \
        || { echo "not done yet: call benchmarks/gpu.sh ladder $SEQ again"; exit 0; }
    cp "$OUT/best-$SEQ.yaml" "$KEEP/"
    echo "ladder $SEQ: done"
    ;;
best)
    BEST=("$MODEL")
    [ -f "$KEEP/best-$SEQ.yaml" ] && BEST+=(--config "$KEEP/best-$SEQ.yaml")
    rm -rf "$KEEP/best-$SEQ"
    yupana train "${BEST[@]}" "${SETTINGS[@]}" --run "$KEEP/best-$SEQ" --train.tokens null --train.steps "${STEPS:-50}" \
        --log.every 1 --checkpoint.every 0 --json > "$OUT/best-$SEQ.json"
    cp "$KEEP/best-$SEQ/metrics.jsonl" "$OUT/best-$SEQ.jsonl"
    yupana flops explain "$KEEP/best-$SEQ" --save "$OUT/waterfall-$SEQ.png" --json > "$OUT/waterfall-$SEQ.json"
    if [ -f "$KEEP/limits.json" ]; then
        yupana flops predict "$MODEL" --seq_len "$SEQ" --micro_batch "$BATCH" --limits "$KEEP/limits.json" --json \
            > "$OUT/prediction-$SEQ.json"
    fi
    echo "best $SEQ: done"
    ;;
peers)
    "$PYTHON" benchmarks/throughput.py --case "${CASE:-b}" --device "${DEVICE:-cuda}" --rounds 2 --steps 5 \
        --out "$OUT/peers.json"
    ;;
*)
    echo "no stage is called $STAGE: there are parity, limits, ladder, best and peers" >&2
    exit 2
    ;;
esac
