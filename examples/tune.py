"""LoRA on a run that train_and_look.py made: six colours, asked in four ways. Needs `pip install 'yupana[tune]'`."""

import json
import sys
from pathlib import Path

import yupana

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example")
colours = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "sun": "yellow"}
ways = ["What colour is {}?", "Tell me the colour of {}.", "{}: which colour?", "Colour of {}, please."]
with open(folder / "chat.jsonl", "w") as file:
    for thing, colour in colours.items():
        for way in ways:
            row = {"prompt": way.format(thing), "completion": f"It is {colour}."}
            file.write(json.dumps(row) + "\n")

result = yupana.tune_model(folder / "tuned", {
    "model.base": str(folder / "run"), "data.train": str(folder / "chat.jsonl"), "data.seq_len": 64,
    "train.steps": 60, "train.global_batch": 8, "optim.lr": 1e-2, "log.eval_every": 20,
})  # fmt: skip

losses = [line["val_loss"] for line in yupana.open_run(folder / "tuned").metrics if "val_loss" in line]
print(f"held-out loss {losses[0]:.3f} → {losses[-1]:.3f} nats an assistant token; MFU {result['mfu']:.1%}")
print(f"adapter: {result['adapter']}\nmerged model: {result['export']}")
