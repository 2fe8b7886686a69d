"""Commands that are killed, interrupted, or lose their terminal or output: what is saved, and the exit status."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import TRAIN, command, main
from conftest import wait_for

import nanogpt_lite as ng

pytestmark = pytest.mark.posix("sends signals, and runs commands in bash")


def test_closed_output_pipe_ends_with_status_141(text_file):
    main(f"{TRAIN} --max_iters 2")
    line = " ".join(command("sample --max_new_tokens 2000"))
    script = f"{line} | head -c 20; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 141
    assert len(done.stdout) == 20
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def last_step(run):
    """The step of the newest record in a run's metrics; -1 if there is none."""
    from nanogpt_lite.tracking.metrics_file import read_metrics

    return max((record["step"] for record in read_metrics(Path(run) / "metrics.jsonl")), default=-1)


def wait_for_step(process, run, step):
    wait_for(lambda: last_step(run) >= step or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1]


@pytest.mark.slow  # test_faults does as much without the command line
def test_run_killed_three_times_ends_with_the_same_files(text_file):
    """kill -9 at random steps, each time of a new process: the same bits as an undisturbed run."""
    line = f"{TRAIN} --dropout 0.1 --max_iters 200 --eval_interval 20 --log_interval 1 --out_dir"
    subprocess.run(command(line, "runs/straight"), check=True, capture_output=True)
    steps = sorted(random.sample(range(21, 190), 3))
    for number, step in enumerate(steps):
        resume = [] if number == 0 else ["--init_from", "resume"]
        with subprocess.Popen(command(line, "runs/killed", *resume), stderr=subprocess.PIPE, text=True) as process:
            wait_for_step(process, "runs/killed", step)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command("train --out_dir runs/killed --init_from resume"), check=True, capture_output=True)
    for name in ("last.safetensors", "best.safetensors"):
        assert Path("runs/killed", name).read_bytes() == Path("runs/straight", name).read_bytes(), steps
    losses = [
        [(r["step"], r.get("loss"), r.get("val_loss")) for r in read(run) if r["kind"] in ("step", "eval")]
        for run in ("runs/straight", "runs/killed")
    ]
    assert losses[0] == losses[1]
    assert not list(Path("runs/killed").glob(".*"))


def read(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signal_finishes_the_step_saves_and_sets_the_status(text_file, signum):
    line = f"{TRAIN} --max_iters 100000 --log_interval 1 --eval_interval 1000000 --out_dir runs/a"
    with subprocess.Popen(command(line), stderr=subprocess.PIPE, text=True) as process:
        wait_for_step(process, "runs/a", 5)
        process.send_signal(signum)
        errors = process.communicate()[1]
    assert process.returncode == 128 + signum
    assert "Traceback" not in errors
    assert "nanogpt-lite train --out_dir runs/a --init_from resume" in errors
    from nanogpt_lite.checkpoint import checkpoint_file

    step = checkpoint_file.read_checkpoint(Path("runs/a/last.safetensors")).metadata.step
    assert step >= 5
    assert read("runs/a")[-1] == {**read("runs/a")[-1], "kind": "done", "reason": "interrupted", "step": step}


@pytest.mark.parametrize(("name", "module"), [("train", "pipeline"), ("run", "main_job")])
def test_interrupted_command_prints_how_to_continue(capsys, monkeypatch, name, module):
    def interrupt(**options):
        raise ng.Interrupted(signal.SIGHUP, "see `init_from='resume'`", out_dir="my runs/a")

    monkeypatch.setattr(f"nanogpt_lite.api.{module}.{name}", interrupt)
    assert main(name) == 129
    assert capsys.readouterr().err == (
        "interrupted: see --init_from resume; "
        f"continue with: nanogpt-lite {name} --out_dir 'my runs/a' --init_from resume\n"
    )


@pytest.mark.parametrize(
    ("name", "module", "saved"),
    [("train", "pipeline", True), ("run", "main_job", True), ("sample", "inference", False)],
)
def test_ctrl_c_outside_of_the_training_loop_says_what_is_saved(capsys, monkeypatch, name, module, saved):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"nanogpt_lite.api.{module}.{name}", interrupt)
    monkeypatch.setattr("nanogpt_lite.runs.run_folder.newest_run", interrupt)
    assert main(name) == 130
    hint = "; earlier checkpoints are unchanged: --out_dir RUN --init_from resume continues from the last one"
    assert capsys.readouterr().err == f"interrupted{hint if saved else ''}\n"


@pytest.mark.parametrize(
    "module",
    ["torch._C", *(pytest.param(name, marks=pytest.mark.slow) for name in ("numpy", "nanogpt_lite.api.pipeline"))],
)
def test_ctrl_c_during_the_imports_ends_the_program_at_once(text_file, module):
    """The signal arrives just before a module is executed; a library that swallows the exception changes nothing."""
    code = f"""
import os, signal, sys
from importlib.abc import MetaPathFinder
class Interrupt(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                pass
sys.meta_path.insert(0, Interrupt())
from nanogpt_lite.cli.main import main
sys.exit(main({command(TRAIN)[3:]!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert not Path("runs").exists()


SLOW_CASES = [pytest.param(closed, marks=pytest.mark.slow) for closed in ("2>&-", ">&-", ">&- 2>&-", "2> /dev/full")]


@pytest.mark.parametrize("closed", ["2> >(head -c 1 > /dev/null)", *SLOW_CASES])
def test_training_continues_when_its_output_is_closed(text_file, closed):
    line = " ".join(command(f"{TRAIN} --max_iters 30 --eval_interval 10"))
    done = subprocess.run(["bash", "-c", f"{line} {closed}"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (
        json.loads(Path("runs/bottles-1/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["kind"] == "done"
    )


@pytest.mark.parametrize("ignored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sighup_saves_and_ends_unless_it_is_ignored(text_file, ignored):
    line = command(f"{TRAIN} --max_iters 1000000 --eval_interval 20 --log_interval 5")
    handling = signal.SIG_IGN if ignored else signal.SIG_DFL  # as nohup has it, and as a terminal has it

    def prepare():
        signal.signal(signal.SIGHUP, handling)

    client = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)
    assert client.stderr
    try:
        while not client.stderr.readline().startswith(("training", "step")):
            assert client.poll() is None
        for _ in range(3):  # the shell sends one, and the system another
            client.send_signal(signal.SIGHUP)
            time.sleep(0.001)  # sent at once they would arrive as one
        if ignored:
            while not client.stderr.readline().startswith(("training", "step")):  # training continues
                assert client.poll() is None
            client.send_signal(signal.SIGTERM)
        stderr = client.communicate(timeout=60)[1]
        assert client.returncode == (143 if ignored else 129)
        assert "the state is saved" in stderr
    finally:
        client.kill()
        client.wait()
