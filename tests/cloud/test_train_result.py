"""What the Function `train` returns; that its parts agree with the stored records is in `test_jobs`."""

from pathlib import Path

import pytest

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.cloud import train_result


@pytest.mark.parametrize(
    ("records", "verdict"),
    [
        ([("result", 4), ("done", 4), ("start", 4), ("step", 6), ("done", 6)], ""),  # interrupted after it was resumed
        ([("result", 4), ("done", 4), ("start", 4), ("result", 6), ("done", 6)], "after 6 --max-iters"),
        ([("result", 4), ("done", 4), ("start", 4), ("done", 4)], "after 4 --max-iters"),  # resumed without a step left
        ([("start", 0), ("done", 0)], ""),
    ],
)
def test_verdict_is_that_on_the_last_step_with_options_as_modal_spells_them(records, verdict):
    metrics = [
        {"kind": kind, "step": step, **({"verdict": f"after {step} `max_iters`"} if kind == "result" else {})}
        for kind, step in records
    ]
    assert train_result._verdict(metrics) == verdict


def test_loss_per_byte_counts_the_bytes_of_the_val_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "é€x\n" * 50
    Path("text.txt").write_text(text, encoding="utf-8", newline="")
    data, run = ng.prepare("text.txt"), Path("runs/run")
    files.write_json(run / "config.json", {"dataset": {"path": data.path.as_posix()}})
    val_text = text[int(0.9 * len(text)) :]
    assert train_result._tokens_per_byte(ng.Run(run)) == len(val_text) / len(val_text.encode())
