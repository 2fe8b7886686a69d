"""A long run uses no more memory, files and threads than a short one."""

import gc
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY_GPT

import nanogpt_lite as ng

OPTIONS: dict[str, Any] = {**TINY_GPT, "eval_interval": 500, "log_interval": 10, "keep_every": 5000, "warmup_iters": 10}
WARM_UP_STEPS = 2000  # after these everything is allocated that is allocated once


def resources_in_use():
    """Memory in pages, open files, and threads of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages, len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.slow
@pytest.mark.linux("counts memory, files and threads in /proc")
def test_20_000_steps_take_no_more_than_2_000(text_file, case_counts):
    ng.prepare("bottles.txt")
    path, invalid, reads, finished = Path("runs/bottles-1/metrics.jsonl"), [], [0], threading.Event()

    def read_repeatedly():
        while not finished.wait(0.01):
            content = path.read_bytes() if path.exists() else b""
            reads[0] += 1
            # at the end of a page a reader may see the first half of a line that is being written
            complete = content[: content.rfind(b"\n") + 1]
            for line in complete.splitlines()[-20:]:
                try:
                    assert json.loads(line)["step"] >= 0
                except (AssertionError, ValueError, KeyError):
                    invalid.append(line)

    reader = threading.Thread(target=read_repeatedly)
    reader.start()
    used = []
    try:
        for record in ng.training("bottles.txt", max_iters=20_000, **OPTIONS):
            if record.kind == "step" and record.step in (WARM_UP_STEPS, 20_000):
                used.append(resources_in_use())
    finally:
        finished.set()
        reader.join()
    (pages, open_files, threads), (last_pages, last_open_files, last_threads) = used
    assert last_pages < pages * 1.02
    assert last_open_files <= open_files + 1  # the reader may have the file open
    assert last_threads <= threads
    assert invalid == []
    assert reads[0] > 100
    assert len([record for record in ng.Run(Path("runs/bottles-1")).metrics if record["kind"] == "step"]) == 2000
    case_counts["steps of one long run"] += 20_000
