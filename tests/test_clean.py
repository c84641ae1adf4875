"""Filters and near-duplicate removal: what goes is what the rules say, is written down, and kills change nothing."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import SHARED_TEXT

from yupana.corpus import clean, quality
from yupana.corpus import words as w
from yupana.corpus.prepare import prepare
from yupana.corpus.shards import open_corpus
from yupana.corpus.sources import Skipped, documents
from yupana.errors import UserError
from yupana.files import sha256_of

datatrove = pytest.importorskip("datatrove", reason="datatrove is not installed")

FILTERS = ["gopher", "repetition", "fineweb"]


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """120 documents of the Python library's prose and code in six files, with a line cut short among them."""
    folder = tmp_path_factory.mktemp("modules")
    texts = [text for _, text in documents(["python"]) if len(text) < 20_000][:120]
    for number in range(6):
        lines = [json.dumps({"text": text}) for text in texts[number * 20 : number * 20 + 20]]
        if number == 3:
            lines.insert(5, '{"text": "cut sho')
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def shards(folder):
    return {name: sealed["sha256"] for name, sealed in open_corpus(folder).info["files"].items()}


def kept_texts(folder):
    from yupana.corpus import tokenizers

    corpus, found = open_corpus(folder), []
    tokenizer = tokenizers.from_file(corpus.tokenizer_file)
    for split in ("train", "val"):
        stream = corpus.split(split)
        for begin, end in zip(stream.starts, [*stream.starts[1:], stream.n_tokens], strict=True):
            ids = stream.read(int(begin), int(end))[1:-1].tolist()
            found.append(tokenizer.decode(ids, skip_special_tokens=False))
    return sorted(found)


def test_what_goes_is_what_the_rules_say_and_all_of_it_is_written_down(modules, tmp_path):
    result = prepare([str(modules)], tmp_path / "out", "bytes", 0.1, filters=FILTERS, tasks=4, workers=2)
    kept, reasons = [], {}
    for name, text in documents([str(modules)]):
        words = text.split()
        measured = quality.measures(text, words, w.hashes(words), quality.c4_lines(text)[1])
        against = [rule for family in FILTERS for rule in quality.RULES if rule.family == family and rule.drops(measured)]
        if against:
            reasons[name] = (against[0].family, against[0].told, len(text.encode()))
        else:
            kept.append(text)
    assert len(kept) > 5
    assert len(reasons) > 20
    assert kept_texts(tmp_path / "out") == sorted(kept)
    lines = gzip.decompress((tmp_path / "out" / "removed.jsonl.gz").read_bytes()).decode().splitlines()
    gone = [json.loads(line) for line in lines]
    assert {entry["id"]: (entry["filter"], entry["reason"], entry["bytes"]) for entry in gone} == reasons
    assert len(gone) == len(reasons)
    assert sum(result["removed"].values()) == len(reasons)
    assert result["skipped"] == {"malformed JSON line": 1}
    info = open_corpus(tmp_path / "out").info["cleaning"]
    assert sum(of["bytes"] for of in info["removed"]) == sum(size for _, _, size in reasons.values())
    assert all(of["examples"] for of in info["removed"])
    page = (tmp_path / "out" / "removed.md").read_text()
    for of in info["removed"]:
        assert f"| {of['filter']} | {of['reason']} | {of['documents']:,} | {of['bytes']:,} |" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    again = prepare([str(modules)], tmp_path / "out", "bytes", 0.1, filters=FILTERS, tasks=4, workers=2)
    assert again["hash"] == result["hash"]  # finished already
    with pytest.raises(UserError, match=r"already holds a corpus.*clean"):
        prepare([str(modules)], tmp_path / "out", "bytes", 0.1, filters=["c4"], tasks=4)


def jaccard(one, other):
    sets = []
    for text in (one, other):
        words = w.plain_words(text)
        sets.append({tuple(words[at : at + 5]) for at in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_near_duplicates_keep_one_of_each(tmp_path):
    """Against Jaccard's formula on Python sets: what is at 0.8 or more goes, all else stays."""
    generator = random.Random(2)
    words = [f"word{n}" for n in range(4000)]
    originals = [" ".join(generator.choices(words, k=120)) for _ in range(150)]
    alike, texts = 0, list(originals)
    for original in originals:
        changed = original.split()
        for place in generator.sample(range(120), generator.choice([0, 1, 2, 3, 4, 8, 25])):
            changed[place] = "other" + str(generator.randrange(10**6))
        copy = " ".join(changed)
        similarity = jaccard(original, copy)
        alike += similarity >= 0.8
        texts.append(copy)
    assert alike > 60
    assert alike < 130
    generator.shuffle(texts)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    result = prepare([str(tmp_path / "t.jsonl")], tmp_path / "out", "bytes", 0.1, near_duplicates=True, tasks=3, workers=2)
    (removed,) = result["removed"].values()
    assert 0.95 * alike <= removed <= alike
    assert result["documents"] == 300 - removed
    left = set(kept_texts(tmp_path / "out"))
    for original in originals:  # one of each pair, at least, is left
        assert original in left or any(jaccard(original, other) > 0.5 for other in left)


def test_the_number_of_workers_changes_nothing(modules, tmp_path):
    for workers in (1, 3):
        out = tmp_path / str(workers)
        prepare([str(modules)], out, "bpe:400", 0.1, filters=["gopher"], near_duplicates=True, tasks=5, workers=workers)
    assert shards(tmp_path / "1") == shards(tmp_path / "3")
    for name in ("removed.jsonl.gz", "removed.md"):
        assert sha256_of(tmp_path / "1" / name) == sha256_of(tmp_path / "3" / name)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(modules, tmp_path):
    options = ["--tokenizer", "bpe:400", "--filter", "gopher", "--filter", "c4", "--near_duplicates", "--tasks", "3"]
    command = [sys.executable, "-m", "yupana", "corpus", "prepare", str(modules), *options]
    began = time.monotonic()
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    whole = time.monotonic() - began
    generator = random.Random(4)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if kills < 8:
            time.sleep(whole * generator.uniform(0.2, 0.95))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
    assert kills >= 3
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    for name in ("removed.jsonl.gz", "removed.md"):
        assert sha256_of(tmp_path / "killed" / name) == sha256_of(tmp_path / "whole" / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_parts_are_the_whole(modules, tmp_path, parts):
    for sources in ([str(modules)], [str(modules / "3.jsonl")], [str(modules / "3.jsonl"), str(modules)]):
        whole, skipped = Skipped(), Skipped()
        expected = list(documents(sources, skipped=whole))
        found = [document for rank in range(parts) for document in documents(sources, skipped=skipped, part=(rank, parts))]
        assert sorted(found) == sorted(expected)
        assert skipped.counts == whole.counts


@pytest.mark.skipif(not SHARED_TEXT.is_dir(), reason="the shared text is not here")
def test_language_filter(tmp_path):
    pytest.importorskip("py3langid")
    german = "Der schnelle braune Fuchs springt über den faulen Hund, und alle Kinder auf der Straße lachen darüber. " * 3
    english = [text for _, text in documents([str(SHARED_TEXT / "wikitext2_valid.txt")])][:20]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in [german, *english])
    (tmp_path / "t.jsonl").write_text(lines)
    result = prepare([str(tmp_path / "t.jsonl")], tmp_path / "out", "bytes", 0.1, filters=["language:en"], tasks=2)
    assert result["removed"] == {"language:en: language de, not en": 1}


def test_wrong_filters_and_filters_that_leave_nothing(modules, tmp_path):
    for filters, words in (
        (["gofer"], r"no filter 'gofer' \(did you mean 'gopher'\?\)"),
        (["language:"], "no filter 'language:'"),
        (["c4", "c4"], "named twice"),
    ):
        with pytest.raises(UserError, match=words):
            prepare([str(modules)], tmp_path / "out", "bytes", filters=filters)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(UserError, match=r"gopher leave no document of .*short\.txt \(1 gopher: 50 to 100 000 words\)"):
        prepare([str(tmp_path / "short.txt")], tmp_path / "out", "bytes", filters=["gopher"], tasks=2, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.txt"]


def test_families_are_those_of_exploring():
    assert clean.FAMILIES == ("gopher", "repetition", "c4", "fineweb")


def test_c4s_lines_go_out_of_documents_and_are_counted(tmp_path):
    good = "This line has enough words and an end."
    mixed = f"{good}\nMenu\n{good}\n\n  We uses cookies here on all of these pages.\n{good}"
    texts = [mixed, "Home\nAbout", " ".join([good] * 4)]
    source = tmp_path / "t.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    result = prepare([str(source)], tmp_path / "out", "bytes", 0.1, filters=["c4-lines", "c4"], tasks=2, workers=2)
    assert kept_texts(tmp_path / "out") == ["\n".join([good] * 3), " ".join([good] * 4)]
    assert result["removed"]["c4-lines: no line is left"] == 1
    assert result["removed_lines"] == {"no end mark": 3, "terms of use, cookies": 1}
    page = (tmp_path / "out" / "removed.md").read_text()
    assert "| no end mark | 3 | 13 |" in page
    assert "- terms of use, cookies: `We uses cookies here on all of these pages.`" in page


SBATCH = """#!/bin/sh
# As Slurm would: each job of the array, one after the other, in the environment that it has there.
for script; do :; done
echo "$script" >> {log}; cat "$script" >> {log}
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for n in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$n SLURM_NODELIST=here RUN_OFFSET=0 sh "$script" >> {log} 2>&1 || true
done
echo Submitted batch job 7
"""


def test_slurm_makes_the_same_corpus_and_a_lost_job_is_one_sentence(modules, tmp_path, monkeypatch):
    """With sbatch, srun, scontrol and squeue played by scripts: what would run on a node runs here, in its own process."""
    from yupana.corpus import executors

    commands, log = tmp_path / "bin", tmp_path / "log"
    commands.mkdir()
    scripts = {
        "sbatch": SBATCH.replace("{log}", str(log)), "scontrol": "#!/bin/sh\necho here\n", "squeue": "#!/bin/sh\n",
        "srun": '#!/bin/sh\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done\nexec "$@"\n',
    }  # fmt: skip
    for name, script in scripts.items():
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    monkeypatch.setattr(executors, "POLL", 0.0)
    searched = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch here"):
        prepare([str(modules)], tmp_path / "no", "bytes", filters=["gopher"], executor="slurm:partition=p,time=1:00:00")
    monkeypatch.setenv("PATH", f"{commands}:{searched}")
    where = "slurm:partition=p,time=1:00:00,mem_per_cpu_gb=3,sbatch.account=us"
    (commands / "srun").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match=r"Slurm's job 7 ended with 2 of 2 tasks unfinished.*start the same command again"):
        prepare([str(modules)], tmp_path / "out", "bytes", 0.1, filters=["gopher"], tasks=2, executor=where)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.preparing").is_dir()
    (commands / "srun").write_text(scripts["srun"])
    prepare([str(modules)], tmp_path / "out", "bytes", 0.1, filters=["gopher"], tasks=2, executor=where)
    told = log.read_text()
    for line in ("partition=p", "time=1:00:00", "mem-per-cpu=3G", "account=us", "array=0-1"):
        assert f"#SBATCH --{line}\n" in told, line
    prepare([str(modules)], tmp_path / "here", "bytes", 0.1, filters=["gopher"], tasks=2)
    assert shards(tmp_path / "out") == shards(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slurm", "ray"])
def test_a_real_cluster_makes_the_same_corpus(modules, tmp_path, monkeypatch, kind):
    """Where Slurm answers; on a Ray cluster of this machine, where ray is installed."""
    from yupana.corpus import executors

    monkeypatch.setattr(executors, "POLL", 1.0)
    where = kind
    if kind == "ray":
        pytest.importorskip("ray", reason="needs ray, which no extra installs: pip install ray")
    else:
        if not shutil.which("sbatch"):
            pytest.skip("there is no Slurm here")
        asked = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True, check=False)
        if asked.returncode:
            pytest.skip(f"Slurm does not answer: {asked.stderr.strip()}")
        where = f"slurm:partition={asked.stdout.split()[0]},time=00:10:00"
    wanted = {"filters": ["gopher"], "near_duplicates": True, "tasks": 2}
    prepare([str(modules)], tmp_path / "out", "bytes", 0.1, executor=where, **wanted)
    prepare([str(modules)], tmp_path / "here", "bytes", 0.1, **wanted)
    assert shards(tmp_path / "out") == shards(tmp_path / "here")


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ("slum", "did you mean 'slurm'"),
        ("local:partition=p", "local has no setting 'partition'.*it has none"),
        ("slurm:time=1:00:00", "needs partition"),
        ("slurm:partition=p,time=1:00:00,mem_per_cpu=3", "did you mean 'mem_per_cpu_gb'"),
        ("slurm:partition=p,time=1:00:00,mem_per_cpu_gb=much", "is no int"),
    ],
)
def test_wrong_executors_are_one_sentence(modules, tmp_path, executor, message):
    with pytest.raises(UserError, match=message):
        prepare([str(modules)], tmp_path / "out", "bytes", filters=["gopher"], executor=executor)
    assert list(tmp_path.iterdir()) == []


def test_every_pass_can_be_sent_to_another_machine(tmp_path):
    """What Slurm's and Ray's executors do with a pass: pickled here, unpickled and run there."""
    import dill

    from yupana.corpus import executors, near
    from yupana.corpus.lines import step

    def sent(name, steps, parts):
        executors.run("local", dill.loads(dill.dumps(steps)), parts, 2, tmp_path / "marks" / name)

    (tmp_path / "kept").mkdir()
    text = " ".join(f"word{number}" for number in range(60))
    lines = [json.dumps({"text": text + end, "id": end}) for end in ("", " more", " other")]
    (tmp_path / "kept" / "0.jsonl").write_text("\n".join(lines) + "\n")
    gone = clean._Removed(tmp_path / "removed", "near-duplicates")
    with clean._quiet(tmp_path / "log"):
        unique = near.deduplicate(tmp_path / "kept", tmp_path, 1, gone, sent)
    assert sum(len(path.read_text().splitlines()) for path in unique.glob("*.jsonl")) == 1
    assert dill.loads(dill.dumps(step(gone, tmp_path)))
    assert dill.loads(dill.dumps(clean._rule("gopher", gone)))
