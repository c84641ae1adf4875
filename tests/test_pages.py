"""report.html, the page that compares, and following a run: what they say, and how they behave in a real browser."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from yupana import config
from yupana.cli import main
from yupana.errors import UserError
from yupana.report.curves import POINTS, run_curves
from yupana.report.page import comparison_page, distinct_names, run_page
from yupana.report.read import read_run
from yupana.run import RunDirectory, open_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CURVES = {"loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_bytes", "val_bpb"}


def made_up(path, steps, *, seed=0, every=50, planned=None, **changes):
    """A run as training leaves it, with figures from a random generator."""
    told = [f"--{key}={value}" for key, value in {"train.steps": planned or steps, **changes}.items()]
    settings = config.load("7m", overrides=told)
    path.mkdir(parents=True)
    config.save(settings, path / "run.yaml")
    sources = [{"name": name, "weight": 0.5, "planned_tokens": 500, "unique_tokens": 900, "epochs": 0.5, "path": name,
                "hash": 64 * "a"} for name in ("prose", "code")]  # fmt: skip
    about = {"parameters": 7_155_360, "flops_per_token": {"palm": 48_218_112, "exact": 45_563_904}, "device": "a <device>",
             "peaks": {"source": "measured"}, "precision": "fp32", "corpora": sources}  # fmt: skip
    (path / "env.json").write_text(json.dumps(about))
    (path / "sample.txt").write_text("</script><b>def</b>")
    draw = np.random.default_rng(seed)
    lines = []
    for step in range(1, steps + 1):
        at = {"step": step, "tokens": 1024 * step, "seconds": 0.25 * step}
        figures = dict(zip(("grad_norm", "tokens_per_second", "mfu"), draw.uniform(0.1, 0.6, 3), strict=True))
        loss = 3 + 5 / step**0.5 + draw.normal() / 10
        lines.append({**at, "loss": loss, "lr": 1e-3 / step, **figures, "mfu_exact": figures["mfu"] * 0.9,
                      "mfu_measured": figures["mfu"], "memory_bytes": 10**9 + step})  # fmt: skip
        if step % every == 0 or step == steps:
            by = {name: {"val_loss": loss + n, "val_bpb": 1 + n} for n, name in enumerate(("prose", "code"))}
            lines.append({**at, "val_loss": loss + 0.5, "val_bpb": 1 + loss, "val_tokens": 18, "val_by_source": by})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunDirectory(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    changes = {"optim.lr": "5e-4", "optim.schedule": "wsd"}
    one, other = made_up(folder / "one", 300), made_up(folder / "other", 200, seed=1, **changes)
    looked_at(one, {"attention": 0.25, "norms": 0.05}, {"prose": 3.5, "code": 2.25}, {"arc_easy": 0.2525})
    looked_at(other, {"norms": 0.1, "attention": -0.02, "data": 0.0004}, {"prose": 3.25}, {})
    return [one, other]


def looked_at(run, lost, texts, tasks):
    """What `flops explain` and `yupana eval` leave in a run."""
    parts = [{"name": name, "seconds": 0.1, "lost_share": share, "lever": "none"} for name, share in lost.items()]
    exact = 1 - sum(lost.values())
    step = {"step_seconds": 0.5, "mfu": {"palm": exact + 0.04, "exact": exact}, "peak": 1e12, "peak_source": "a <sheet>"}
    (run.path / "waterfall.json").write_text(json.dumps({**step, "parts": parts}))
    rows = [figures(loss) | {"name": f"texts/{name}.txt"} for name, loss in texts.items()]
    found = {name: {"acc": value, "acc_stderr": 0.0089, "samples": 2376} for name, value in tasks.items()}
    evaluated = {"checkpoint": "last", "domains": rows, **figures(sum(texts.values()) / len(texts)), "tasks": found}
    (run.path / "evaluations.json").write_text(json.dumps([evaluated]))


def figures(loss):
    return {"nll_per_token": loss, "nll_interval": [loss - 0.125, loss + 0.125], "bits_per_byte": loss / 2,
            "bits_per_byte_interval": None, "tokens": 2494, "documents": 24}  # fmt: skip


# What the pages say


def test_a_page_holds_the_figures_the_settings_that_differ_and_what_was_evaluated(runs, tmp_path):
    run = made_up(tmp_path / "run", 60, **{"optim.lr": "7e-4"})
    row = {"nll_per_token": 4.65721, "nll_interval": [4.6, 4.7], "bits_per_byte": 1.781, "bits_per_byte_interval": None,
           "tokens": 2494, "documents": 24}  # fmt: skip
    tasks = {"arc_easy": {"acc": 0.2525, "acc_stderr": 0.0089, "samples": 2376}}
    found = [{"checkpoint": "last", "domains": [{"name": "texts/prose.txt", **row}], "tasks": tasks}]
    (run.path / "evaluations.json").write_text(json.dumps(found))
    parts = [{"name": "attention", "seconds": 0.1, "lost_share": 0.25, "lever": "shorter sequences"}]
    step = {"step_seconds": 0.5, "mfu": {"palm": 0.8, "exact": 0.75}, "peak": 1e12, "peak_source": "measured"}
    (run.path / "waterfall.json").write_text(json.dumps({**step, "parts": parts}))
    guess = {"step_seconds": 0.01, "tokens_per_second": 102_400, "mfu": {"palm": 0.35}, "memory_bytes": {"total": 9e8},
             "global_batch": 4, "seq_len": 256, "hardware": "h100", "rates": "assumed"}  # fmt: skip
    (run.path / "step_prediction.json").write_text(json.dumps(guess))
    page = run_page(read_run(run))
    lines = run.metrics()
    memory = 100 * (9e8 / (10**9 + 60) - 1)
    said = html.unescape(re.sub(r"<[^>]+>", "|", page[: page.index('<script type="application/json"')]))
    for words in (f"{lines[-1]['val_loss']:.4f} nats a token", "4.6572", "4.6000 … 4.7000", "arc_easy", "0.2525", "0.0089",
                  "−25.0 %", "75.0 %", "shorter sequences", "a <device>", "102,400", f"{memory:+.1f} %"):  # fmt: skip
        assert words in said, words
    assert re.search(r"optim\.lr\|+0\.002\|+0\.0007\|", said)
    assert re.search(r"train\.steps\|+null\|+60\|", said)
    assert "optim.warmup_steps|" not in said.split("Every setting")[0]  # as the preset has it
    assert "</script><b>" not in page
    assert not re.search(r"(src|href)=.?https?:|url\(http|@import", page)


def test_a_setting_of_no_preset_is_compared_with_the_defaults(tmp_path):
    run = made_up(tmp_path / "run", 3, **{"model.n_layers": 5})
    assert re.search(r"<th[^>]*>default</th>.*model\.n_layers</td><td[^>]*>\d+</td><td[^>]*>5</td>", run_page(read_run(run)))


def test_a_long_run_stays_below_two_megabytes_and_hides_no_spike(tmp_path):
    run = made_up(tmp_path / "run", 8_000, every=500)
    lines = run.metrics()
    lines[2_345]["loss"] = 77.0
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_run(run)
    assert len(run_page(record).encode()) < 2e6
    loss = run_curves(record, [])["charts"][0]["series"][0]
    assert len(loss["values"]) <= POINTS + 1
    assert max(loss["high"]) == 77.0
    assert "one in 2 of the logged steps" in run_page(record)
    steps = [line for line in record.steps if "loss" in line]
    assert loss["values"][-1] == pytest.approx(steps[-1]["loss"], rel=1e-6)
    for n in (0, 7, 1000):
        part = [line["loss"] for line in steps[n * loss["stride"] : (n + 1) * loss["stride"]]]
        assert (loss["low"][n], loss["high"][n]) == pytest.approx((min(part), max(part)), rel=1e-6)


def test_a_run_cut_off_in_the_middle_says_so(tmp_path):
    run = made_up(tmp_path / "run", 20, planned=100)
    with open(run.metrics_file, "a") as file:
        file.write('{"step": 21, "tok')
    page = run_page(read_run(run))
    assert "Stopped at step 20 of 100" in page
    assert "1 line of metrics.jsonl cut off in the middle" in page
    run.lock()
    assert "Still training: step 20 of 100" in run_page(read_run(open_run(run.path)))
    run.unlock()
    run.metrics_file.unlink()
    assert "No step is logged yet" in run_page(read_run(run))
    (run.path / "evaluations.json").write_text('[{"chec')
    run_page(read_run(run))
    for name in ("env.json", "run.yaml"):
        (run.path / name).write_text("[")
        with pytest.raises(UserError, match=f"{name} is damaged"):
            read_run(run)


def test_a_finished_run_needs_no_warning(runs):
    assert 'class="state"' not in run_page(read_run(runs[0])).replace('<noscript><p class="state">', "")


def test_compared_runs_show_what_differs(runs):
    page = comparison_page([read_run(run) for run in runs])
    rows = re.findall(r"<tr><td[^>]*>([a-z_]+\.[a-z_]+)</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td></tr>", page)
    differ = {("train.steps", "300", "200"), ("optim.lr", "0.002", "0.0005"), ("optim.schedule", "cosine", "wsd")}
    assert set(rows) == differ
    for run in runs:
        assert f"{run.metrics()[-1]['val_loss']:.4f}" in page


def test_runs_without_evaluations_are_compared_all_the_same(runs, tmp_path):
    plain = [made_up(tmp_path / name, 20) for name in ("one", "other")]
    page = comparison_page([read_run(run) for run in plain])
    assert "Where the MFU went" not in page
    assert "Evaluations" not in page
    (plain[0].path / "waterfall.json").write_text('{"step_sec')
    comparison_page([read_run(run) for run in plain])
    page = comparison_page([read_run(run) for run in [runs[0], plain[1]]])
    assert "measured it (not of other)" in page  # and its cells are empty, not 0
    assert re.search(r"<td>attention</td><td>−25.0 %<div[^>]*></div></td><td>—</td>", page)


def test_runs_of_the_same_name_are_told_apart():
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/a/y/other")]
    assert distinct_names(paths) == ["x/run", "y/run", "y/other"]
    assert distinct_names([Path("/a/x"), Path("/a/x")]) == ["x", "x"]


# The command


def test_report_compares_and_refuses_what_cannot_be(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("yupana.report.page.write_pictures", lambda record: None)  # tests/test_cli.py looks at them
    one, other = (run.path for run in runs)
    assert main(["report", str(one), str(other), "--out", str(tmp_path / "both.html"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["report"] for run in told["runs"]] == [str(one / "report.html"), str(other / "report.html")]
    assert Path(told["comparison"]).read_text().startswith("<!doctype html>")
    for arguments, words in (
        ([one, "--out", tmp_path / "x.html"], "there is only one"),
        ([one, other, "--out", tmp_path / "no" / "x.html"], "in a folder that exists"),
        ([tmp_path], "is not a run directory"),
    ):
        assert main(["report", *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err


def test_live_follows_a_run_until_it_ends_and_ctrl_c_is_clean(tmp_path):
    run = made_up(tmp_path / "run", 20, planned=100)
    page, command = run.path / "report.html", [sys.executable, "-m", "yupana", "report", str(run.path), "--live"]

    def wait_for(words):
        for _ in range(900):  # a busy machine takes long to start Python
            if page.is_file() and words in page.read_text():
                return
            time.sleep(0.1)
        raise AssertionError(words)

    run.lock()
    for ending in ("end", "Ctrl-C"):
        page.unlink(missing_ok=True)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for("Still training: step 2")
        assert "data-again" in page.read_text()
        if ending == "end":
            run.log({**run.metrics()[-2], "step": 23})
            wait_for("Still training: step 23 of 100")
            run.unlock()
        else:
            process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)
        assert process.returncode == 0, told
        assert "Traceback" not in told[1]
        assert "data-again" not in page.read_text()
        if ending == "end":
            assert "Stopped at step 23 of 100" in page.read_text()
            run = open_run(run.path)
            run.lock()
    run.unlock()


# The browser


@pytest.fixture(scope="module")
def seen(runs, tmp_path_factory):
    """What a browser saw on the page of the first run and on the page that compares both."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    folder = tmp_path_factory.mktemp("pages")
    records = [read_run(run) for run in runs]
    many = [made_up(folder / f"run-{n}", 40 if n else 20, seed=n, every=10) for n in range(7)]
    pages = {"one.html": run_page(records[0]), "both.html": comparison_page(records),
             "many.html": comparison_page([read_run(run) for run in many])}  # fmt: skip
    for name, page in pages.items():
        (folder / name).write_text(page)
    shutil.copyfile(Path(__file__).parent / "pages.html", folder / "look.html")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
               "--virtual-time-budget=20000", "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
               f"--user-data-dir={folder / 'profile'}", "--window-size=1300,1000", "--dump-dom",
               f"file://{folder / 'look.html'}?{','.join(pages)}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "TZ": "UTC"})
    found = re.search(r'<pre id="told">(.+?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-3000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return [*json.loads(html.unescape(found[1])), console]


def test_the_browser_complains_of_nothing_and_asks_nobody(seen):
    assert len(seen[-1]) == 1  # its own word, so that silence means something
    assert "the console is heard" in seen[-1][0]
    for page in seen[:-1]:
        assert page["requests"] == []


def test_values_under_the_pointer_are_those_of_metrics(seen, runs):
    lines = runs[0].metrics()
    steps = {line["step"]: line for line in lines if "loss" in line}
    held_out = {line["step"]: line for line in lines if "val_loss" in line}
    names = {"loss": ("loss", "val_loss"), "mfu": ("mfu", "mfu_exact"), "val_bpb": ("val_bpb",)}
    factors = {"mfu": 100, "memory_bytes": 1e-9}
    assert set(seen[0]["charts"]) >= CURVES
    read = set()
    for hover in [*seen[0]["hovers"], {"charts": seen[0]["at_rest"]}]:
        for chart in CURVES:
            for key, chip in zip(names.get(chart, (chart,)), hover["charts"][chart], strict=True):
                line = (held_out if key.startswith("val") else steps)[int(chip["step"])]
                assert float(chip["raw"]) == pytest.approx(line[key], rel=1e-6)
                shown = float(chip["shown"].split(" (")[0].replace(",", ""))
                assert shown == pytest.approx(line[key] * factors.get(chart, 1), rel=6e-5)
                read.add((key, line["step"]))
    assert len(read) > 40  # different points


def test_the_pointer_reads_the_step_that_it_points_at(seen, runs):
    lines = [line for line in runs[0].metrics() if "loss" in line]
    for hover in seen[0]["hovers"]:
        step = int(hover["charts"]["loss"][0]["step"])
        assert f"step {step}" in hover["where"]
    by_axis = {axis: [int(h["charts"]["loss"][0]["step"]) for h in seen[0]["hovers"] if h["axis"] == axis]
               for axis in seen[0]["axes"]}  # fmt: skip
    for found in by_axis.values():  # all axes are proportional to steps here, so each place reads the same step
        assert found == sorted(found)
        assert found == pytest.approx(by_axis["step"], abs=2)
    assert by_axis["step"][2] == pytest.approx(len(lines) / 2, rel=0.15)


def test_the_axis_switches_between_tokens_flops_time_and_steps(seen, runs):
    axes = seen[0]["axes"]
    assert [axes[name][-1] for name in ("tokens", "flops", "seconds", "step")] == ["tokens", "FLOPs", "time", "steps"]
    assert "300 k" in axes["tokens"]
    assert any(tick.endswith(" T") for tick in axes["flops"])
    assert any(tick.endswith(" s") for tick in axes["seconds"])
    assert "300" in axes["step"]


def test_zoom_keyboard_and_names_answer(seen, runs):
    page, first = seen[0], runs[0].metrics()[:2]
    assert page["after"] == ""
    assert page["zoomed"]["button"]
    assert "zoom=" in page["zoomed"]["hash"]
    assert page["whole"]
    for told, line in ((page["home"], first[0]), (page["right"], first[1])):
        assert float(told[0]["raw"]) == pytest.approx(line["loss"], rel=1e-6)
    assert "training" in page["spoken"]
    assert page["hidden"] == "hidden"
    assert "Loss, nats a token" in page["label"]


def test_a_phone_needs_no_sideways_scrolling(seen):
    for page in seen[:-1]:
        assert page["phone"]["content"] <= page["phone"]["window"] <= 360
        assert page["wider"] == []


def test_the_page_that_compares_reads_each_runs_own_values(seen, runs):
    for hover in seen[1]["hovers"]:
        for run, chip in zip(runs, hover["charts"]["loss"], strict=True):
            line = next(line for line in run.metrics() if line["step"] == int(chip["step"]) and "loss" in line)
            assert chip["name"] == run.path.name
            assert float(chip["raw"]) == pytest.approx(line["loss"], rel=1e-6)
    assert {"val_loss", "loss", "mfu", "val_loss prose", "val_loss code"} <= set(seen[1]["charts"])


def test_bars_of_compared_runs_are_as_long_as_their_shares(seen):
    bars = {(bar["part"], bar["run"]): bar for bar in seen[1]["bars"]}
    lost = {("MFU, exact", 0): 0.7, ("MFU, exact", 1): 0.9196, ("attention", 0): 0.25, ("attention", 1): -0.02,
            ("norms", 0): 0.05, ("norms", 1): 0.1}  # fmt: skip
    assert set(bars) == set(lost)
    longest = bars["MFU, exact", 1]["width"]
    assert longest > 60
    for place, share in lost.items():
        assert bars[place]["width"] == pytest.approx(longest * max(0, share) / 0.9196, abs=0.5)
        sign = "" if "MFU" in place[0] else "−" if share > 0 else "+"
        assert bars[place]["told"] == f"{sign}{100 * abs(share):.1f} %"


def test_evaluations_of_compared_runs_stand_side_by_side(seen):
    rows = {row[0]: row[1:] for row in seen[1]["compared"]}
    assert rows["prose.txt, nats a token"] == ["3.5000\n3.3750 … 3.6250", "3.2500\n3.1250 … 3.3750"]
    assert rows["prose.txt, bits a byte"] == ["1.7500", "1.6250"]
    assert rows["code.txt, nats a token"] == ["2.2500\n2.1250 … 2.3750", "—"]
    assert rows["all 2 together, nats a token"] == ["2.8750\n2.7500 … 3.0000", "—"]
    assert rows["arc_easy, acc"] == ["0.2525 ± 0.0089", "—"]
    assert rows["the peak"] == ["1 TFLOP/s, a <sheet>"] * 2


def test_names_of_many_curves_stay_apart_and_are_led_to_from_their_ends(seen):
    checked = 0
    for names, leaders in zip(seen[2]["names"], seen[2]["leaders"], strict=True):
        for n, one in enumerate(names):
            assert one["right"] <= one["edge"] + 1
            for other in names[n + 1 :]:
                beside = one["right"] < other["left"] or other["right"] < one["left"]
                assert beside or abs(one["middle"] - other["middle"]) >= 14
        ends = [[float(number) for number in re.findall(r"[\d.]+", path)] for path in leaders]
        assert len(leaders) in (0, 6)  # the seventh ends halfway, alone
        # Lines that lead to names do not cross: names stand in the order in which their curves end.
        assert [end[3] for end in sorted(ends, key=lambda end: end[1])] == sorted(end[3] for end in ends)
        checked += len(leaders)
    assert checked >= 6
