"""Train a small Llama on the Python documentation's text, then look at the run: about ten seconds on two cores."""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import yupana

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example")
folder.mkdir(exist_ok=True)
(folder / "topics.txt").write_text("\n\n".join(topics.values()))

settings = yupana.settings("7m", changes={
    "data.corpus": str(folder / "topics.txt"), "data.tokenizer": "bpe:512", "data.seq_len": 64,
    "model.vocab_size": 512, "model.n_layers": 2, "model.d_model": 96, "model.n_heads": 4, "model.n_kv_heads": 2,
    "model.head_dim": 24, "model.d_ff": 256,
    "train.steps": 60, "train.global_batch": 16, "optim.lr": 5e-3, "log.eval_every": 20, "checkpoint.export": True,
})  # fmt: skip
run = yupana.pretrain(settings, folder / "run")

frame = run.frame()
print(frame[["loss", "val_loss", "tokens_per_second", "mfu"]].iloc[[1, 20, 40, 60]])
print(f"bits per byte of held-out text: {run.summary()['val_bpb']:.3f}")
print(run.sample("The statement", tokens=40))
run.plot().savefig(folder / "curves.png")
