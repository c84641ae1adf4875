"""From what the user typed to a fine-tuning: data, base, adapter, trainer, and what is saved at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import yupana
from yupana.config import load_tree, save
from yupana.errors import UserError
from yupana.files import disk_errors, sync_folder, write_json
from yupana.flops import hardware
from yupana.run import RunDirectory
from yupana.tune.adapters import fingerprint, new_adapter, open_adapter, save_adapter
from yupana.tune.config import Tuning
from yupana.tune.data import Data, read_data
from yupana.tune.template import IGNORED, choose_template


def begin(
    run: RunDirectory, file: Path | None = None, overrides: Sequence[str] = (), *, resume: bool = False
) -> dict[str, Any]:
    """Tune in `run`; returns the last metrics and where the results are.

    Writes adapter/ and export/ beside the files of every run. Raises UserError for wrong input, before anything is
    written where that can be.
    """
    need_extra()
    if resume and not run.exists:
        raise UserError(f"there is nothing to resume in {run.path}: it has no run.yaml; leave --resume out to begin")
    if run.exists and not resume:
        raise UserError(f"{run.path} already holds a run: add --resume to go on with it, or choose another --run")
    config = load_tree(Tuning, run.config_file if resume and file is None else file, overrides)
    config.check()
    config = replace(config, model=replace(config.model, base=base_folder(config.model.base)))
    tokenizer = open_tokenizer(config.model.base)
    template = choose_template(tokenizer, config.data.template)
    data = read_data(config, tokenizer)
    device, precision = choose(config)
    model = open_model(config.model.base, device, precision)
    check_fits(config, model, tokenizer)
    mark = fingerprint(model)
    torch.manual_seed(config.train.seed)
    if config.model.adapter:
        model = open_adapter(model, Path(config.model.adapter), config.model.base)
    elif config.lora.rank:
        model = new_adapter(model, config.lora)
    run.lock()
    try:
        with disk_errors(str(run.path)):
            save(config, run.config_file)
            about = environment(config, model, data, device, precision, template)
            write_json(run.env_file, about)
            last, counted = train(config, run, model, tokenizer, data, device, precision, resume=resume)
            tokens = max(counted.tokens, 1)
            about["flops_per_token"] = {name: flops / tokens for name, flops in counted.flops.items()}
            write_json(run.env_file, about)
            written = write_results(config, run, model, tokenizer, data, mark)
            return {**last, **data.about, "template": template, **written}
    finally:
        run.unlock()


def need_extra() -> None:
    """Raise UserError where TRL or PEFT is not installed."""
    for name in ("trl", "peft"):
        try:
            __import__(name)
        except ImportError as error:
            raise UserError(f"yupana tune needs {error.name or name}: pip install 'yupana[tune]'") from error


def base_folder(base: str) -> str:
    """Where the base's weights are: a run directory's export (written from its last checkpoint), else `base` itself."""
    from yupana.train.exchange import export_run

    run = RunDirectory(base)
    if not run.exists:
        return base
    if run.checkpoints.is_dir() and any(run.checkpoints.glob("step_*")):
        export_run(run.path, None, "last", "bfloat16")
    elif not run.export.is_dir():
        raise UserError(f"{base} has neither a checkpoint nor an export/: there is no model to tune")
    return str(run.export)


def open_tokenizer(base: str) -> Any:
    """The tokenizer of a base, with something to pad with. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    with plain_errors(base):
        tokenizer = AutoTokenizer.from_pretrained(base)
    if not tokenizer.is_fast:
        raise UserError(f"{base} has no tokenizer.json: tuning needs to know which characters a token stands for")
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {base} names no token that ends a text (eos_token)")
    if tokenizer.pad_token is None:
        known = tokenizer.get_vocab()
        tokenizer.pad_token = next(t for t in ("<|finetune_right_pad_id|>", tokenizer.eos_token) if t in known)
    return tokenizer


def open_model(base: str, device: str, precision: str) -> Any:
    """The base as `transformers` has it, its weights in the dtype that the precision keeps them in."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with plain_errors(base):
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device)


def check_fits(config: Tuning, model: Any, tokenizer: Any) -> None:
    """Raise UserError where the base has too short a context, or too few embeddings for its tokenizer."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and config.data.seq_len > longest:
        raise UserError(f"data.seq_len ({config.data.seq_len}) is longer than the base's context ({longest} tokens)")
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise UserError(f"the base's tokenizer has {len(tokenizer)} tokens, but the model has embeddings for {embeddings}")


@contextlib.contextmanager
def plain_errors(base: str) -> Any:
    """The library's long advice on a missing model as one sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise UserError(
            f"model.base '{base}' cannot be loaded: it is neither a run directory nor a Hugging Face folder here, or it is "
            f"incomplete, and as a hub name it did not work either ({told[:160]})"
        ) from error


def choose(config: Tuning) -> tuple[str, str]:
    """Device and precision."""
    wanted = config.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device is cuda, but torch sees no GPU here: use --train.device cpu")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    if config.train.precision != "auto":
        return device, config.train.precision
    if not hardware.bf16_is_fast(device):
        return device, "fp32"
    return device, "bf16" if config.lora.rank else "bf16-autocast"


def train(
    config: Tuning, run: RunDirectory, model: Any, tokenizer: Any, data: Data, device: str, precision: str, *, resume: bool
) -> tuple[dict[str, Any], Any]:
    """Train to the end; the last metrics with the last evaluation's, and the callback that counted."""
    from yupana.train.trackers import Trackers
    from yupana.tune.callback import YupanaCallback
    from yupana.tune.trainer import RunRecorder, build

    trainer = build(config, run, model, tokenizer, data, device, precision)
    counted = YupanaCallback.add_to(trainer)
    saved = sorted(run.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    if resume and saved:
        trainer.args.eval_on_start = False  # that checkpoint was evaluated
    else:
        run.rewind(-1)
    with Trackers(config, run) as trackers:  # type: ignore[arg-type]  # it asks for log.tensorboard and log.wandb only
        trainer.callback_handler.callbacks.insert(2, RunRecorder(run, trackers, counted, config.train.method))
        trainer.train(resume_from_checkpoint=str(saved[-1]) if resume and saved else None)
        done = trainer.state.global_step
        if not any(line["step"] == done and name.startswith("val_") for line in run.metrics() for name in line):
            trainer.evaluate()
    last: dict[str, Any] = {}
    for line in run.metrics():
        last |= line
    return last, counted


def environment(
    config: Tuning, model: Any, data: Data, device: str, precision: str, template: str
) -> dict[str, Any]:
    """What env.json says: versions, hardware, the base, how much is trained."""
    import peft
    import transformers
    import trl

    peaks = hardware.peaks(device, "float32" if precision == "fp32" else "bfloat16")
    return {
        "yupana": yupana.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "peft": peft.__version__,
        "device": peaks.device,
        "device_kind": device,
        "precision": precision,
        "peaks": hardware.describe(peaks),
        "base": config.model.base,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "template": template,
        **data.about,
    }


def write_results(
    config: Tuning, run: RunDirectory, model: Any, tokenizer: Any, data: Data, mark: str
) -> dict[str, Any]:
    """Write adapter/ (with adapters) and export/ (the whole model); returns their paths."""
    written: dict[str, Any] = {}
    if hasattr(model, "peft_config"):
        with _whole(run.path / "adapter") as folder:
            save_adapter(model, folder, config.model.base, mark)
            tokenizer.save_pretrained(str(folder))
        written["adapter"] = str(run.path / "adapter")
        if not config.checkpoint.merge:
            return written
        model = model.merge_and_unload()
    with _whole(run.export) as folder:
        model.config.use_cache = True
        model.generation_config.eos_token_id = _ends_of_answers(tokenizer, data)
        model.to(_stored_dtype(config.model.base)).save_pretrained(str(folder), safe_serialization=True)
        tokenizer.save_pretrained(str(folder))
    return {**written, "export": str(run.export)}


def _ends_of_answers(tokenizer: Any, data: Data) -> list[int]:
    """The tokens at which generation stops: the end of a text, and what ends an answer in the template."""
    last = {[label for label in tokens.labels if label != IGNORED][-1] for tokens in data.train}
    specials = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted({tokenizer.eos_token_id} | (last & specials))


def _stored_dtype(base: str) -> torch.dtype:
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(base), "dtype", None) or torch.float32


@contextlib.contextmanager
def _whole(folder: Path) -> Any:
    """A folder to write into that takes its name only when it is complete; an earlier one is replaced."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
