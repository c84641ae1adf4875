"""MFU, tokens a second and memory in a `transformers` Trainer of your own: one line, nothing else of yupana."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import yupana

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=512, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True,
))  # fmt: skip
data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 512, (64, 128))]
arguments = TrainingArguments(
    output_dir="trainer", max_steps=8, per_device_train_batch_size=8, logging_steps=4, report_to=[], save_strategy="no",
)  # fmt: skip

callback = yupana.YupanaCallback()
Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()

for line in callback.history:
    print(f"step {line['step']}: {line['tokens_per_second']:,.0f} tokens/s, MFU {line['mfu']:.1%} (palm), "
          f"{line['mfu_exact']:.1%} (exact), {line['memory_bytes'] / 1e9:.2f} GB")  # fmt: skip
