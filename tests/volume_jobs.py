"""Trainings of `cloud.jobs` on the machines of `shared_volume`, and what they store."""

from typing import Any

from tiny import TINY_GPT

import nanogpt_lite as ng
from nanogpt_lite.checkpoint import SUFFIX
from nanogpt_lite.cloud import jobs

OPTIONS: dict[str, Any] = {**TINY_GPT, "batch_size": 2, "eval_interval": 4, "log_interval": 1}


def train(machines, call_id, **options):
    """An attempt of the call `call_id` on a new machine."""
    return train_here(machines.start(), machines, call_id, **options)


def train_here(storage, machines, call_id, **options):
    """An attempt of the call `call_id` on a machine that is running."""
    return jobs.train_job(storage, machines.call(call_id), **{"dataset": machines.text, **OPTIONS, **options})


def read_last(machines, run="text-1"):
    """The bytes of the last checkpoint that is stored of a run."""
    return (machines.shared / "runs" / run / f"last{SUFFIX}").read_bytes()


def steps_of(machines, kind, run="text-1"):
    """The steps of the stored records of a kind."""
    return [record["step"] for record in ng.Run(machines.shared / "runs" / run).metrics if record["kind"] == kind]


def stored_files(machines):
    """The bytes of all stored files, by their paths."""
    return {path: path.read_bytes() for path in machines.shared.rglob("*") if path.is_file()}


def upload(machines, text):
    """Store the text `mine`, as the client uploads it."""
    storage = machines.start()
    (storage.root / "texts").mkdir(exist_ok=True)
    (storage.root / "texts/mine.txt").write_text(text, encoding="utf-8")
    storage.volume.commit()
