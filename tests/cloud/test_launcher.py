"""Ranks started from a process that is not a rank: same records as in one process, and signals reach them once."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for
from tiny import TINY_GPT

import nanogpt_lite as ng
from nanogpt_lite.cloud import launcher
from nanogpt_lite.tracking.records import DoneRecord, EvalRecord, record_from_json

pytestmark = pytest.mark.linux("starts ranks as in a container of Modal, and finds them in /proc")

OPTIONS: dict[str, Any] = {**TINY_GPT, "batch_size": 8, "eval_interval": 4, "log_interval": 2, "lr_decay_iters": 12}


def read_metrics(out_dir):
    """The records of a run's metrics file, without the fields that differ between two equal runs."""
    varying = ("seconds", "tokens_per_second", "out_dir", "path", "ranks")
    return [{k: v for k, v in record.items() if k not in varying} for record in ng.Run(Path(out_dir)).metrics]


def running_ranks(folder):
    """The ids of the launcher's processes whose current folder is `folder`."""
    pgrep = subprocess.run(["pgrep", "-f", "nanogpt_lite.cloud.launcher"], capture_output=True, text=True, check=False)
    return [
        pid
        for pid in pgrep.stdout.split()
        if Path(f"/proc/{pid}/cwd").exists() and Path(f"/proc/{pid}/cwd").samefile(folder)
    ]


def test_train_on_ranks_gives_the_records_and_losses_of_one_process(text_file):
    data = ng.prepare(text_file)
    records = [
        record.to_json() for record in launcher.train_on_ranks(2, data, out_dir="runs/shared", max_iters=12, **OPTIONS)
    ]
    assert (records[-1]["kind"], records[-1]["reason"]) == ("done", "max_iters")
    assert records == ng.Run(Path("runs/shared")).metrics
    ng.train(data, out_dir="runs/alone", max_iters=12, **OPTIONS)
    shared = {r["step"]: r["val_loss"] for r in read_metrics("runs/shared") if r["kind"] == "eval"}
    alone = {r["step"]: r["val_loss"] for r in read_metrics("runs/alone") if r["kind"] == "eval"}
    assert shared == pytest.approx(alone, abs=1e-5)


def test_ranks_find_each_other_without_resolving_the_name_of_the_host(tmp_path, monkeypatch):
    configs = []

    def elastic_launch(config, _entrypoint):
        configs.append(config)
        return lambda *arguments: None

    monkeypatch.setattr(launcher, "elastic_launch", elastic_launch)
    monkeypatch.setattr(launcher, "_stop_at_stdin_eof", lambda: None)
    launcher.launch(tmp_path, 2)
    assert [config.local_addr for config in configs] == ["127.0.0.1"]


@pytest.mark.slow
def test_signal_to_the_caller_stops_the_ranks_with_the_state_saved(text_file):
    with pytest.raises(ng.Interrupted, match="the state is saved"):
        for record in launcher.train_on_ranks(2, "bottles.txt", out_dir="runs/shared", max_iters=100_000, **OPTIONS):
            if isinstance(record, EvalRecord) and record.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
    assert isinstance(record, DoneRecord)
    assert (record.kind, record.reason) == ("done", "interrupted")
    ng.train(out_dir="runs/shared", init_from="resume", max_iters=record.step + 2)


@pytest.mark.slow
def test_user_error_of_a_rank_is_raised_in_the_caller(text_file):
    with pytest.raises(ng.UserError, match="a step of 8 rows .* cannot be shared equally by 3 ranks"):
        list(launcher.train_on_ranks(3, str(text_file), out_dir="runs/three", max_iters=1, **OPTIONS))
    assert not Path("runs").exists()


def test_ranks_that_end_without_an_error_of_their_own_raise_external_error(text_file, monkeypatch):
    @contextmanager
    def start_and_end(world_size, folder):
        yield launcher._Launcher(subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]))

    monkeypatch.setattr(launcher, "_start_launcher", start_and_end)
    with pytest.raises(ng.ExternalError, match=r"a rank ended .* continues from the last checkpoint"):
        list(launcher.train_on_ranks(2, "bottles.txt", out_dir="runs/none", max_iters=1, **OPTIONS))


def test_user_error_of_a_rank_is_raised_before_other_errors(tmp_path):
    errors = {
        "0000": ("ExternalError", "connection to rank 1 is lost; start again"),
        "0001": ("UserError", "give another text"),
        "0002": ("DownloadError", "no network"),
    }
    for rank, (kind, message) in errors.items():
        (tmp_path / f"{rank}.{launcher.ERROR}").write_text(json.dumps({"kind": kind, "message": message}))
    with pytest.raises(ng.UserError, match="give another text"):
        launcher._raise_rank_error(tmp_path)
    (tmp_path / f"0001.{launcher.ERROR}").unlink()
    with pytest.raises(ng.ExternalError, match="connection to rank 1 is lost; start again"):
        launcher._raise_rank_error(tmp_path)
    (tmp_path / f"0000.{launcher.ERROR}").unlink()
    with pytest.raises(ng.ExternalError, match="no network"):
        launcher._raise_rank_error(tmp_path)
    (tmp_path / f"0002.{launcher.ERROR}").unlink()
    launcher._raise_rank_error(tmp_path)


@pytest.mark.slow
def test_closed_generator_stops_the_ranks_with_the_state_saved(text_file):
    with closing(
        launcher.train_on_ranks(2, str(text_file), out_dir="runs/left", max_iters=100_000, **OPTIONS)
    ) as records:
        next(record for record in records if isinstance(record, EvalRecord))
    assert not running_ranks(text_file.parent)
    assert read_metrics("runs/left")[-1]["reason"] == "interrupted"


def test_incomplete_line_is_read_again_when_it_is_complete(tmp_path):
    path = tmp_path / "records.jsonl"
    line = b'{"kind": "sample", "step": 1, "text": "a"}\n'
    with path.open("a+b") as record_file:
        for content, count in ((line + line[:7], 1), (line[7:] + line, 2), (b"", 0)):
            with path.open("ab") as appended:
                appended.write(content)
            records = list(launcher._read_new_records(record_file))
            assert [record.to_json() for record in records] == [json.loads(line)] * count


def test_record_survives_json(text_file):
    records = list(ng.training(str(text_file), **OPTIONS, sample_interval=2, max_iters=4))
    assert {record.kind for record in records} == {"start", "step", "sample", "eval", "checkpoint", "result", "done"}
    assert [record_from_json(record.to_json()) for record in records] == records


@pytest.mark.slow
def test_ranks_end_when_the_caller_is_killed(text_file):
    code = f"""
import nanogpt_lite as ng
from nanogpt_lite.cloud import launcher
for record in launcher.train_on_ranks(2, "bottles.txt", out_dir="runs/killed", max_iters=100_000, **{OPTIONS!r}):
    print(record.kind, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "start\n"
    process.kill()
    process.wait()
    process.stdout.close()
    wait_for(lambda: not running_ranks(text_file.parent))  # the process that read their records is gone
