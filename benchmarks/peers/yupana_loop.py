"""Worker: yupana's own training step, from the parts that `yupana train` is made of.

    python benchmarks/peers/yupana_loop.py JOB.json

`dtype` bf16 means bf16 weights with fp32 masters, yupana's default where bf16 is fast. The allocator is set as
`yupana train` sets it, whatever the environment says.
"""

from __future__ import annotations

import torch
from protocol import BETAS, CLIP, WEIGHT_DECAY, Channel, Job, read_job, serve

import yupana
from yupana.config import Config, DataConfig, OptimConfig, TrainConfig
from yupana.model.shapes import ModelShape, RopeScaling
from yupana.train import fast, host, optimizer
from yupana.train.session import build_model


def main() -> None:
    host.keep_memory()  # before torch allocates anything
    channel, job = Channel(), read_job()
    batches = torch.from_numpy(job.load_batches()).to(job.device)
    _, batch, tokens = batches.shape
    config = configuration(job, batch, tokens - 1)
    model = build_model(config, job.device, job.dtype)
    optim = optimizer.build(model, job.dtype, config.optim, job.seed)
    compiled = "block" if job.compile else "off"
    head_and_loss = fast.loss_function(config, compiled)
    fast.apply(model, config, job.device, compiled)
    scale = torch.tensor(1.0 / (batch * (tokens - 1)), device=job.device)

    def step(index: int) -> float:
        sequences = batches[index % len(batches)]  # [batch, seq + 1]
        hidden = model.hidden(sequences[:, :-1].contiguous()).flatten(0, 1)
        loss = head_and_loss(hidden, model.output_weight, sequences[:, 1:].flatten(), scale)
        loss.backward()
        optim.collect()
        optim.step(index, job.lr)
        return loss.item()

    parameters = sum(parameter.numel() for parameter in model.parameters())
    channel.ready("yupana", parameters, {"torch": torch.__version__, "yupana": yupana.__version__})
    serve(channel, step, batch * (tokens - 1))


def configuration(job: Job, batch: int, seq_len: int) -> Config:
    """A run's configuration with the job's settings."""
    shape = dict(job.shape)
    if scaling := shape.get("rope_scaling"):
        shape["rope_scaling"] = RopeScaling(**scaling)
    return Config(
        model=ModelShape(**shape),
        data=DataConfig(seq_len=seq_len),
        train=TrainConfig(steps=1, global_batch=batch, seed=job.seed),
        optim=OptimConfig(lr=job.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, clip=CLIP),
    )


if __name__ == "__main__":
    main()
