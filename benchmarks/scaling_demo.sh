#!/usr/bin/env bash
# The demonstration of docs/scaling.md: a sweep, a law, a run predicted before it is made, and what came of it.
#
#   benchmarks/scaling_demo.sh sweep      15 runs, 1e12 to 2e13 FLOPs (call again after a stop: it goes on)
#   benchmarks/scaling_demo.sh predict    the law, held-out scores, and the prediction of a run five times beyond
#   git commit docs/results/scaling-demo  the prediction stands before the run
#   benchmarks/scaling_demo.sh train      that run
#   benchmarks/scaling_demo.sh compare    measured beside predicted, also while it trains
#
# Results go to $OUT (docs/results/scaling-demo), runs stay in runs/. PYTHON, SWEEP, TARGET, RUNS, RUN, BELOW and OUT can
# be set: the test goes through all stages with two sizes that train in seconds (tests/test_scaling_demo.py).
set -euo pipefail
cd "$(dirname "$0")/.."
STAGE=${1:?stage: sweep, predict, train or compare}
PYTHON=${PYTHON:-python3}
SWEEP=${SWEEP:-docs/results/sweep.yaml}
TARGET=${TARGET:-docs/results/sweep_target.yaml}
RUNS=${RUNS:-runs/scaling-demo/runs}        # `out` of the sweep's file, and /runs
RUN=${RUN:-runs/scaling-demo-target}
BELOW=${BELOW-1.5e13}                       # the largest budget is held out once; empty: none is
OUT=${OUT:-docs/results/scaling-demo}
export PYTHONPATH=src
mkdir -p "$OUT"
yupana() { "$PYTHON" -m yupana "$@"; }

case $STAGE in
sweep)
    yupana scaling sweep "$SWEEP"
    "$PYTHON" benchmarks/scaling_demo_tables.py "$OUT" "$RUNS"/*
    ;;
predict)
    yupana scaling fit "$RUNS"/* ${BELOW:+--below "$BELOW"} --out "$OUT"
    # Parabolas need their minima inside the sizes of three budgets; fit.json says so too where they are not.
    yupana scaling fit "$RUNS"/* --approach 2 --out "$OUT/parabolas" || true
    yupana scaling predict "$OUT/fit.json" --config "$TARGET" --out "$OUT/prediction.json"
    echo "Commit $OUT before the run: git add $OUT && git commit"
    ;;
train)
    if [ -z "${UNCOMMITTED:-}" ] && ! git cat-file -e "HEAD:$OUT/prediction.json"; then
        echo "$OUT/prediction.json is not committed: a prediction counts only if it stands before the run" >&2
        exit 2
    fi
    resume=()
    [ -e "$RUN/run.yaml" ] && resume=(--resume)
    yupana train --config "$TARGET" --run "$RUN" "${resume[@]}"
    ;;
compare)
    yupana scaling predict "$OUT/prediction.json" --run "$RUN" --out "$OUT/comparison.png"
    yupana scaling predict "$OUT/prediction.json" --run "$RUN" --json > "$OUT/comparison.json"
    "$PYTHON" benchmarks/scaling_demo_tables.py "$OUT" "$RUNS"/* "$RUN"
    ;;
*)
    echo "there is no stage '$STAGE': sweep, predict, train or compare" >&2
    exit 2
    ;;
esac
