"""Ranks started from a process that is none of them: its records are those of one process, signals reach them once."""

import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import wait_for

import nanogpt_lite as ng
from nanogpt_lite.cloud import launcher
from nanogpt_lite.tracking.records import EvalRecord, record_from_json

SMALL = {"preset": "cpu", "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "batch_size": 8, "threads": 1}
SMALL |= {"eval_interval": 4, "log_interval": 2, "warmup_iters": 2, "lr_decay_iters": 12}


def records(out_dir):
    """What is in a run's metrics file, but for what differs between two runs of the same."""
    times = ("seconds", "tokens_per_second", "out_dir", "path", "ranks")
    return [{k: v for k, v in record.items() if k not in times} for record in ng.Run(Path(out_dir)).metrics]


def ranks_at_work(folder):
    """The processes of the launcher that work in a folder."""
    found = subprocess.run(["pgrep", "-f", "nanogpt_lite.cloud.launcher"], capture_output=True, text=True, check=False)
    return [
        pid
        for pid in found.stdout.split()
        if Path(f"/proc/{pid}/cwd").exists() and Path(f"/proc/{pid}/cwd").samefile(folder)
    ]


def test_to_the_end_it_gives_what_one_process_gives(text_file):
    data = ng.prepare(text_file)
    got = [
        record.to_json() for record in launcher.train_on_ranks(2, data, out_dir="runs/shared", max_iters=12, **SMALL)
    ]
    assert (got[-1]["kind"], got[-1]["reason"]) == ("done", "max_iters")
    assert got == ng.Run(Path("runs/shared")).metrics
    ng.train(data, out_dir="runs/alone", max_iters=12, **SMALL)
    shared = {r["step"]: r["val_loss"] for r in records("runs/shared") if r["kind"] == "eval"}
    alone = {r["step"]: r["val_loss"] for r in records("runs/alone") if r["kind"] == "eval"}
    assert shared == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
def test_a_signal_stops_the_ranks_once(text_file):
    with pytest.raises(ng.Interrupted, match="the state is saved"):
        for record in launcher.train_on_ranks(2, "bottles.txt", out_dir="runs/shared", max_iters=100_000, **SMALL):
            if isinstance(record, EvalRecord) and record.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
    assert (record.kind, record.reason) == ("done", "interrupted")
    ng.train(out_dir="runs/shared", init_from="resume", max_iters=record.step + 2)


@pytest.mark.slow
def test_what_is_wrong_in_a_rank_is_said_here(text_file):
    with pytest.raises(ng.UserError, match="a step of 8 rows .* cannot be shared equally by 3 ranks"):
        list(launcher.train_on_ranks(3, str(text_file), out_dir="runs/three", max_iters=1, **SMALL))
    assert not Path("runs").exists()


def test_ranks_that_end_without_a_word_are_told_of(text_file, monkeypatch):
    @contextmanager
    def ended(count, folder):
        yield launcher._Launcher(subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]))

    monkeypatch.setattr(launcher, "_start_launcher", ended)
    with pytest.raises(ng.ExternalError, match=r"a rank has ended; .* go on from the last checkpoint"):
        list(launcher.train_on_ranks(2, "bottles.txt", out_dir="runs/none", max_iters=1, **SMALL))


@pytest.mark.slow
def test_left_early_it_leaves_nobody_behind_and_the_state_is_saved(text_file):
    with closing(
        launcher.train_on_ranks(2, str(text_file), out_dir="runs/left", max_iters=100_000, **SMALL)
    ) as all_records:
        next(record for record in all_records if isinstance(record, EvalRecord))
    assert not ranks_at_work(text_file.parent)
    assert records("runs/left")[-1]["reason"] == "interrupted"


def test_lines_that_are_not_whole_are_left_for_the_next_look(tmp_path):
    path = tmp_path / "records.jsonl"
    whole = b'{"kind": "sample", "step": 1, "text": "a"}\n'
    with path.open("a+b") as written:
        for content, count in ((whole + whole[:7], 1), (whole[7:] + whole, 2), (b"", 0)):
            with path.open("ab") as other:
                other.write(content)
            assert [record.text for record in launcher._new_records(written)] == ["a"] * count


def test_a_record_survives_json(text_file):
    all_records = list(ng.training(str(text_file), **SMALL, sample_interval=2, max_iters=4))
    assert {record.kind for record in all_records} == {"start", "step", "sample", "eval", "checkpoint", "done"}
    assert [record_from_json(record.to_json()) for record in all_records] == all_records


@pytest.mark.slow
def test_a_process_that_is_killed_takes_its_ranks_along(text_file):
    code = f"""
import nanogpt_lite as ng
from nanogpt_lite.cloud import launcher
for record in launcher.train_on_ranks(2, "bottles.txt", out_dir="runs/killed", max_iters=100_000, **{SMALL!r}):
    print(record.kind, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "start\n"
    process.kill()
    process.wait()
    process.stdout.close()
    wait_for(lambda: not ranks_at_work(text_file.parent))  # nobody reads any more what they do
