"""`python -m nanogpt_lite …` is the command `nanogpt-lite …`."""

import os
import sys

from nanogpt_lite.cli.main import main

if __name__ == "__main__":
    status = main()
    if "WORLD_SIZE" in os.environ:
        from nanogpt_lite.device import distributed

        distributed.hard_exit(status)
    sys.exit(status)
