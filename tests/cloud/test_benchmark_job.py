"""The benchmark's process in a container: its tables, its limit of time, and its end. A short program stands for it."""

import json
import os
import signal
import subprocess

import pytest
from conftest import wait_for
from shared_volume import SharedDict

import nanogpt_lite as ng
from nanogpt_lite.cloud import benchmark_job
from nanogpt_lite.cloud.calls import Call

# writes a table for each file that the test creates: "one", "two", "three"; "end" ends it with the status in the file
PROGRAM = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--out") + 1])
Path("words").write_text(json.dumps(sys.argv[1:]))
Path("pythonpath").write_text(os.environ["PYTHONPATH"])
Path("pid").write_text(str(os.getpid()))

def write(name, **content):
    (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / f".{name}.md.1.tmp").write_text("not yet")
    (folder / f".{name}.md.1.tmp").write_text(f"| {content['text']} |")
    (folder / f".{name}.md.1.tmp").replace(folder / f"{name}.md")

for text in ("one", "two", "three"):
    while not Path(text).exists():
        if Path("end").exists():
            sys.exit(int(Path("end").read_text()))
        time.sleep(0.01)  # the test sends no event when it has made the file
    complete = text == "three"
    write("t4" if complete else "t4-incomplete", text="two" if complete else text, complete=complete)
for path in folder.glob("t4-incomplete*"):
    path.unlink()
sys.exit(1)  # as when a part has failed
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark_job, "POLL_INTERVAL", 0.01)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/on_gpu.py").write_text(PROGRAM)
    return tmp_path


def run_job(shared=None, **options):
    call = Call("call-1", shared or SharedDict())
    return benchmark_job.benchmark_job(call, **{"time_limit": 600.0, "device": "cuda", **options})


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_each_table_is_yielded_when_it_is_written(folder, capfd):
    job = run_job(short=True)
    texts = []
    for text in ("one", "two"):
        (folder / text).touch()
        table = next(job)
        texts.append((table["name"], table["markdown"], json.loads(table["json"])["text"]))
    assert texts == [("t4-incomplete", "| one |", "one"), ("t4-incomplete", "| two |", "two")]
    (folder / "three").touch()
    (last,) = job
    assert (last["name"], last["markdown"]) == ("t4", "| two |"), "the last part may add nothing"
    words = json.loads((folder / "words").read_text())
    assert words[:5] == ["--nanogpt", "nanoGPT", "--device", "cuda", "--short"]
    assert 590 <= float(words[words.index("--seconds") + 1]) <= 600
    assert (folder / "pythonpath").read_text().split(os.pathsep)[0] == str(folder)
    assert " no GPU for " in capfd.readouterr().out, "what the call cost"


@pytest.mark.parametrize("first", [False, True])
def test_benchmark_that_ends_without_a_complete_table_is_an_error(folder, first):
    job = run_job()
    if first:
        (folder / "one").touch()
        assert next(job)["name"] == "t4-incomplete"
    (folder / "end").write_text("2")
    with pytest.raises(ng.ExternalError, match="ended with status 2.*try again"):
        next(job)


def test_later_attempt_has_the_time_that_is_left_and_none_starts_without(folder):
    shared = SharedDict()
    Call("call-1", shared).note_time(500.0, 1)
    (folder / "end").write_text("1")
    with pytest.raises(ng.ExternalError):
        next(run_job(shared))
    words = json.loads((folder / "words").read_text())
    assert 90 <= float(words[words.index("--seconds") + 1]) <= 100
    Call("call-1", shared).note_time(590.0, 2)
    (folder / "words").unlink()
    with pytest.raises(ng.UserError, match="limit of 600 s is used up by 3 attempts; give a longer `timeout`"):
        next(run_job(shared))
    assert not (folder / "words").exists()


@pytest.mark.posix("sends SIGINT")
def test_process_ends_with_the_call(folder):
    job = run_job()
    (folder / "one").touch()
    next(job)
    pid = int((folder / "pid").read_text())
    job.close()
    wait_for(lambda: not is_running(pid))


@pytest.mark.posix("sends SIGINT")
def test_process_that_does_not_end_is_killed_and_waited_for(folder, monkeypatch):
    ignore = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    (folder / "benchmarks/on_gpu.py").write_text(ignore + PROGRAM)
    monkeypatch.setattr(benchmark_job, "STOP_TIMEOUT", 0.05)
    started = []

    class Process(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Process)
    job = run_job()
    (folder / "one").touch()
    next(job)
    job.close()
    assert started[0].returncode == -signal.SIGKILL, "it is no zombie"
