"""Worker: a bare training loop around transformers' LlamaForCausalLM, the way most people write it.

    python benchmarks/peers/transformers_loop.py JOB.json

Labels are the inputs, shifted inside the model. `dtype` bf16 means bf16 weights, bf16-autocast fp32 weights under
autocast. `optimizer` default is torch.optim.AdamW's own choice on a CPU (foreach off), fused is `fused=True`.
"""

from __future__ import annotations

import torch
import transformers
from huggingface import build
from protocol import BETAS, CLIP, WEIGHT_DECAY, Channel, read_job, serve


def main() -> None:
    channel, job = Channel(), read_job()
    batches = torch.from_numpy(job.load_batches()).to(job.device)
    _, batch, tokens = batches.shape
    model = build(job, tokens - 1).to(job.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=job.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=job.optimizer == "fused" or None
    )
    forward = torch.compile(model) if job.compile else model

    def step(index: int) -> float:
        ids = batches[index % len(batches), :, :-1].contiguous()  # [batch, seq]
        with torch.autocast(job.device, torch.bfloat16, enabled=job.dtype == "bf16-autocast"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    channel.ready("transformers loop", model.num_parameters(), versions)
    serve(channel, step, batch * (tokens - 1))


if __name__ == "__main__":
    main()
