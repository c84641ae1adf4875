"""Fine-tuning through TRL and PEFT, evaluation, and the callback that counts any Trainer's FLOPs."""
