"""What the console prints: on standard error only, as a bar on a terminal and as lines elsewhere."""

import io
import sys

import pytest
from example_records import START, done_record, eval_record, step_record
from tqdm.std import tqdm

from nanogpt_lite.config.spelling import for_command_line
from nanogpt_lite.tracking import console as console_module
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.records import (
    CheckpointRecord,
    SampleRecord,
    StartRecord,
)


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch):
    """As outside a notebook: other tests may have imported ipykernel."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def test_a_finished_run_reports_how_to_train_longer(capsys):
    Console(bar=False).write(StartRecord(**{**vars(START), "step": 5000}))
    assert capsys.readouterr().err == "runs/a already has its 5000 steps; to train longer, give a larger `max_iters`\n"


def test_a_run_that_takes_no_more_steps_is_not_said_to_train(capsys):
    Console(bar=False).write(StartRecord(**{**vars(START), "step": 250, "is_finished": True}))
    assert capsys.readouterr().err == "runs/a is at step 250 of 5000, and takes no more steps\n"


def test_header_describes_the_training(capsys):
    console = Console(bar=False)
    console.write(START)
    console.write(StartRecord(**{**vars(START), "step": 250}))
    console.close()
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    for part in ("5000", "10.75M parameters", "16,384 tokens", "81.6 epochs", "NVIDIA H100", "bfloat16", "2 threads"):
        assert part in first
    assert "from step 250 to step 5000" in second
    assert "from" not in first


def test_without_a_terminal_each_evaluation_is_one_line(capsys):
    console = Console()
    console.write(START)
    for number in range(1, 4):
        console.report("download", number, 3)
        console.write(step_record(number))
        console.write(eval_record(number, is_best=number == 1))
        console.write(CheckpointRecord(step=number, name="last", path="x"))
    console.write(SampleRecord(step=3, text="To be"))
    console.write(done_record(3, reason="patience", best_val_loss=1.4, best_step=1, seconds=62))
    console.note("done")
    console.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    _start, *evaluations, rule, sample, end, done, note = err.splitlines()
    assert evaluations == [
        "step 1: train loss 1.2500, val loss 1.5000, best so far, 61 s",
        "step 2: train loss 1.2500, val loss 1.5000 (best 1.4000), 61 s",
        "step 3: train loss 1.2500, val loss 1.5000 (best 1.4000), 61 s",
    ]
    assert (rule, sample, end) == ("--- sample at step 3", "To be", "---")
    assert done.startswith("stopped at step 3, no better val loss for `patience` evaluations")
    assert "best val loss 1.4000 at step 1" in done
    assert note == "done"


@pytest.mark.parametrize("reason", ["max_iters", "max_seconds", "target_loss", "patience", "interrupted"])
def test_footer_names_the_stop_reason(capsys, reason):
    Console(bar=False).write(done_record(7, reason=reason))
    err = capsys.readouterr().err
    assert err.startswith("stopped at step 7, ")
    assert "None" not in err
    assert "best val loss" not in err


def test_bar_shows_loss_and_rate(capsys):
    console = Console(bar=True)
    console.write(START)
    console.write(step_record(2500))
    console.write(eval_record(2500))
    console.write(done_record(5000, best_val_loss=1.4, best_step=1, seconds=62))
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("\r", "2500/5000", "50%", "loss 2500.3333, 123.5k tokens/s, MFU 25.0%", "5000/5000"):
        assert part in err


def test_bar_of_a_resumed_run_starts_at_its_step(capsys):
    console = Console(bar=True)
    console.write(StartRecord(**{**vars(START), "step": 2000}))
    console.close()
    assert "2000/5000" in capsys.readouterr().err


def test_each_task_of_bytes_has_one_bar(monkeypatch, capsys):
    """Many updates share a bar; a new task gets a new one."""
    made = []

    def spy(**options):
        made.append(tqdm(**{**options, "delay": 0, "mininterval": 0}))
        return made[-1]

    monkeypatch.setattr(console_module, "terminal_bar", spy)
    console = Console(bar=True)
    for task, total in (("download", 50), ("read", None), ("encode", 50)):
        for done in range(10, 60, 10):
            console.report(task, done, total)
    assert [(bar.desc, bar.n, bar.total) for bar in made] == [
        ("download", 50, 50),
        ("read", 50, None),
        ("encode", 50, 50),
    ]
    console.close()
    assert all(bar.disable for bar in made)  # closed
    out, err = capsys.readouterr()
    assert out == ""
    assert "50.0/50.0" in err


def test_without_a_bar_a_step_is_printed_after_a_silence(capsys, monkeypatch):
    console = Console(bar=False)
    console.write(START)
    console.write(step_record(10))
    assert "step 10" not in capsys.readouterr().err
    monkeypatch.setattr(console_module, "SILENT_SECONDS", -1)
    console.write(step_record(20))
    assert capsys.readouterr().err == "step 20: loss 20.3333, 123.5k tokens/s, MFU 25.0%\n"


@pytest.mark.parametrize("closed", [False, True])
def test_closed_or_missing_standard_error_does_not_fail(monkeypatch, closed):
    stream = io.StringIO() if closed else None
    if stream:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console()
    for record in (
        START,
        step_record(1),
        done_record(1),
    ):
        console.write(record)
    console.report("read", 1, 2)
    console.close()


def test_footer_shows_a_loss_of_zero(capsys):
    Console(bar=False).write(done_record(7, best_val_loss=0.0, best_step=4))
    assert "best val loss 0.0000 at step 4; " in capsys.readouterr().err


def test_options_in_messages_are_respelled_and_sampled_text_is_not(capsys):
    console = Console(bar=False, spell=for_command_line)
    console.note("give a larger `max_iters`")
    console.write(SampleRecord(step=1, text="`max_iters`"))
    assert capsys.readouterr().err == "give a larger --max_iters\n--- sample at step 1\n`max_iters`\n---\n"
