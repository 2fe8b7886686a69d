"""Run a command, and write its seconds, exit status and peak memory (MB) into a JSON file.

    python launch.py FILE COMMAND…

This is a small program of its own because Linux counts the memory of the parent at the fork as the child's. It needs
`posix_spawn` and `wait4`: the benchmarks run on Linux and macOS, and not on Windows.
"""

import json
import os
import sys
import time
from pathlib import Path

start = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - start
memory = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
result = {"seconds": seconds, "status": os.waitstatus_to_exitcode(status), "memory": memory}
Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")
