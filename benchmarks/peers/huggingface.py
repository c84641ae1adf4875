"""The model that both transformers workers train: LlamaForCausalLM of a job's shape, from random weights."""

from __future__ import annotations

from typing import Any

import torch
from protocol import Job
from transformers import LlamaConfig, LlamaForCausalLM


def build(job: Job, seq_len: int) -> LlamaForCausalLM:
    """The model in bf16 if the job says so, in fp32 for the rest (autocast keeps fp32 weights)."""
    shape = job.shape
    torch.manual_seed(job.seed)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape["rope_theta"]}
    if scaling := shape.get("rope_scaling"):
        rope |= {
            "rope_type": "llama3",
            "factor": scaling["factor"],
            "low_freq_factor": scaling["low_freq_factor"],
            "high_freq_factor": scaling["high_freq_factor"],
            "original_max_position_embeddings": scaling["original_context"],
        }
    config = LlamaConfig(
        hidden_size=shape["d_model"],
        intermediate_size=shape["d_ff"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        head_dim=shape["head_dim"],
        vocab_size=shape["vocab_size"],
        tie_word_embeddings=shape["tie_embeddings"],
        rope_parameters=rope,
        rms_norm_eps=shape.get("norm_eps", 1e-5),
        max_position_embeddings=131072 if scaling else max(2048, seq_len),
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).train()
    return model.to(torch.bfloat16) if job.dtype == "bf16" else model
