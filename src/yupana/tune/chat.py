"""An answer from a tuned run: the message in the chat template that its export carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from yupana.errors import UserError
from yupana.model import huggingface
from yupana.model.generate import generate
from yupana.run import open_run


def answer(path: Path, message: str, tokens: int = 120, **sampling: Any) -> str:
    """What the tuned model of a run says to a message of the user, up to the end of its turn or `tokens` tokens.

    `sampling` as model/generate.py has it. Raises UserError for a run whose export knows no chat template.
    """
    from transformers import AutoTokenizer, GenerationConfig

    export = open_run(path).export
    if not (export / "tokenizer_config.json").is_file():
        raise UserError(f"{path} has no tuned model: --chat needs a run of yupana tune (without it: --prompt)")
    tokenizer = AutoTokenizer.from_pretrained(export)
    if not tokenizer.chat_template:
        raise UserError(f"the model in {export} has no chat template: --chat needs a run of yupana tune (else: --prompt)")
    said = [{"role": "user", "content": message}]
    ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"]
    ends = GenerationConfig.from_pretrained(export).eos_token_id
    stop = ends if isinstance(ends, list) else [ends]
    model = huggingface.read(export, torch.float32)
    return tokenizer.decode(list(generate(model, ids, tokens, stop=stop, **sampling)), skip_special_tokens=True)
