#!/bin/sh
# The same model on two mixtures of five kinds of text: which text does each serve?
#
#     sh benchmarks/corpus_sources.sh sources && sh benchmarks/mixtures.sh sources runs
#
# One tokenizer for all five, a corpus each, then two runs of 0.1 M tokens that differ in data.corpus alone. Their
# reports (runs/prose-first/report.html, runs/code-first/report.html) show the loss of each source over the run.
# A short demonstration of a report, not of how good the models are.
set -eu
sources=${1:?name the folder of sources} runs=${2:?name a folder for the runs}
yupana=${YUPANA:-yupana}

[ -d "$runs/corpora/all" ] || $yupana corpus prepare "$sources/prose" "$sources/plays" "$sources/manuals" python \
    --out "$runs/corpora/all" --tokenizer bpe:4096
for name in prose plays manuals dictionary; do
    source="$sources/$name"
    [ -e "$source" ] || source="$source.txt"
    [ -d "$runs/corpora/$name" ] || $yupana corpus prepare "$source" --out "$runs/corpora/$name" \
        --tokenizer "$runs/corpora/all" --val_fraction 0.05
done
[ -d "$runs/corpora/code" ] || $yupana corpus prepare python --out "$runs/corpora/code" --tokenizer "$runs/corpora/all" \
    --val_fraction 0.05

train() {  # NAME PROSE PLAYS MANUALS DICTIONARY CODE
    resume=
    [ -f "$runs/$1/run.yaml" ] && resume=--resume
    $yupana train 7m --run "$runs/$1" $resume --train.steps 100 --train.global_batch 4 --optim.warmup_steps 10 \
        --log.every 10 --log.eval_every 25 --log.eval_tokens 20480 --checkpoint.every 50 --data.corpus \
        "{$runs/corpora/prose: $2, $runs/corpora/plays: $3, $runs/corpora/manuals: $4, $runs/corpora/dictionary: $5, $runs/corpora/code: $6}"
}
train prose-first 60 15 10 10 5
train code-first 5 5 20 10 60
$yupana report "$runs/prose-first" "$runs/code-first"
