"""A long run takes no more and leaves no more behind than a short one."""

import gc
import json
import sys
import threading
from pathlib import Path

import pytest

import nanogpt_lite as ng

TINY = {"preset": "cpu", "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "batch_size": 4, "threads": 1}
TINY |= {"device": "cpu", "eval_interval": 500, "log_interval": 10, "keep_every": 5000, "warmup_iters": 10}
SETTLED = 2000  # steps: whatever is allocated once is there by then


def used():
    """Memory in pages, open files, threads of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages, len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only there /proc tells what a process has")
def test_20_000_steps_take_no_more_than_2_000(text_file, figures):
    ng.prepare("bottles.txt")
    path, torn, looks, over = Path("runs/bottles-1/metrics.jsonl"), [], [0], threading.Event()

    def look():
        while not over.wait(0.01):
            content = path.read_bytes() if path.exists() else b""
            looks[0] += 1
            # the system may show a reader the first half of a line that is being written, at the end of a page
            whole = content[: content.rfind(b"\n") + 1]
            for line in whole.splitlines()[-20:]:
                try:
                    assert json.loads(line)["step"] >= 0
                except (AssertionError, ValueError, KeyError):
                    torn.append(line)

    reader = threading.Thread(target=look)
    reader.start()
    taken = []
    try:
        for record in ng.training("bottles.txt", max_iters=20_000, **TINY):
            if record.kind == "step" and record.step in (SETTLED, 20_000):
                taken.append(used())
    finally:
        over.set()
        reader.join()
    (pages, handles, threads), (pages_at_the_end, *rest) = taken
    assert pages_at_the_end < pages * 1.02
    assert rest[0] <= handles + 1  # the reader may have the file open
    assert rest[1] <= threads
    assert torn == []
    assert looks[0] > 100
    assert len([record for record in ng.Run("runs/bottles-1").metrics if record["kind"] == "step"]) == 2000
    figures["steps of one long run"] += 20_000
