"""Run a command, and write what it took into a file: seconds, exit status, the most memory it had, in MB.

    python launch.py FILE COMMAND…

In a process of its own, since Linux counts the memory of whoever starts a process as the process's own.
"""

import json
import os
import sys
import time
from pathlib import Path

begun = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - begun
memory = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
told = {"seconds": seconds, "status": os.waitstatus_to_exitcode(status), "memory": memory}
Path(sys.argv[1]).write_text(json.dumps(told), encoding="utf-8")
