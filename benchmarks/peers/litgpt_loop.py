"""Worker: litgpt's GPT with the training step of its `litgpt/pretrain.py` (Fabric, `chunked_cross_entropy`).

    .venv-peers/bin/python benchmarks/peers/litgpt_loop.py JOB.json

litgpt pins older versions of what yupana's tests need, so it has an environment of its own:

    python3 -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.13.0 litgpt

As in pretrain.py the model is compiled before Fabric wraps it and the loss is outside the compiled part. pretrain.py
asks for fused AdamW on CUDA only; `optimizer` fused gives it on the CPU too.
"""

from __future__ import annotations

from importlib.metadata import version

import lightning as L
import torch
from litgpt.model import GPT, Config
from litgpt.pretrain import initialize_weights
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer, num_parameters
from protocol import BETAS, CLIP, WEIGHT_DECAY, Channel, Job, read_job, serve

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-true", "bf16-autocast": "bf16-mixed"}


def config(job: Job, seq_len: int) -> Config:
    """litgpt's configuration of the job's shape, as its own Llama 3 entries are written."""
    shape = job.shape
    rope = None
    if scaling := shape.get("rope_scaling"):
        rope = {name: scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor")}
        rope["original_max_seq_len"] = scaling["original_context"]
    return Config(
        name="benchmark",
        block_size=seq_len,
        n_layer=shape["n_layers"],
        n_embd=shape["d_model"],
        n_head=shape["n_heads"],
        n_query_groups=shape["n_kv_heads"],
        head_size=shape["head_dim"],
        intermediate_size=shape["d_ff"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        rope_base=int(shape["rope_theta"]),
        rope_adjustments=rope,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=shape.get("norm_eps", 1e-5),
        mlp_class_name="LLaMAMLP",
    )


def main() -> None:
    channel, job = Channel(), read_job()
    batches = torch.from_numpy(job.load_batches())
    _, batch, tokens = batches.shape
    fabric = L.Fabric(devices=1, precision=PRECISIONS[job.dtype])
    fabric.launch()
    fabric.seed_everything(job.seed)
    with fabric.init_module(empty_init=True):
        model = GPT(config(job, tokens - 1))
    initialize_weights(fabric, model, n_layer=model.config.n_layer, n_embd=model.config.n_embd)
    if job.shape["tie_embeddings"]:
        model.transformer.wte.weight = model.lm_head.weight
    parameters = num_parameters(model)
    model = fabric.setup(torch.compile(model) if job.compile else model)
    settings = {"lr": job.lr, "betas": BETAS, "weight_decay": WEIGHT_DECAY}
    optimizer = instantiate_torch_optimizer(
        {"class_path": "torch.optim.AdamW", "init_args": settings},
        model.parameters(),
        fused=job.optimizer == "fused" or fabric.device.type == "cuda",
    )
    optimizer = fabric.setup_optimizers(optimizer)

    def step(index: int) -> float:
        sequences = batches[index % len(batches)]  # [batch, seq + 1]
        logits = model(sequences[:, :-1].contiguous())
        loss = chunked_cross_entropy(logits, sequences[:, 1:].contiguous())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    versions = {name: version(name) for name in ("torch", "litgpt", "lightning")}
    channel.ready("litgpt", parameters, versions)
    serve(channel, step, batch * (tokens - 1))


if __name__ == "__main__":
    main()
