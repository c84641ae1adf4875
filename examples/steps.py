"""Take a training's steps one at a time, and stop when the loss says so."""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import yupana

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example")
folder.mkdir(exist_ok=True)
(folder / "topics.txt").write_text("\n\n".join(topics.values()))

settings = yupana.settings("7m", changes={
    "data.corpus": str(folder / "topics.txt"), "data.tokenizer": "bytes", "data.seq_len": 64,
    "model.vocab_size": 258, "model.n_layers": 2, "model.d_model": 96, "model.n_heads": 4, "model.n_kv_heads": 2,
    "model.head_dim": 24, "model.d_ff": 256,
    "train.steps": 200, "train.global_batch": 16, "optim.lr": 5e-3, "checkpoint.every": 10,
})  # fmt: skip

for line in yupana.steps(settings, folder / "stopped-early"):
    if line["step"] % 10 == 0:
        print(f"step {line['step']:3d}  loss {line['loss']:.3f}  {line['tokens_per_second']:,.0f} tokens/s")
    if line["loss"] < 3.0:
        print(f"below 3 nats a byte after {line['tokens']:,} tokens: enough")
        break
