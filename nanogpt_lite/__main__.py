"""`python -m nanogpt_lite …` is the command `nanogpt-lite …`."""

import os
import sys

from nanogpt_lite.cli import main

if __name__ == "__main__":
    status = main()
    if "WORLD_SIZE" in os.environ:
        from nanogpt_lite import ranks

        ranks.leave(status)
    sys.exit(status)
