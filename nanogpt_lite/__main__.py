"""`python -m nanogpt_lite …` is the command `nanogpt-lite …`."""

import os
import sys

from nanogpt_lite.cli.main import main

if __name__ == "__main__":
    status = main()
    if "WORLD_SIZE" in os.environ:  # one of torchrun's processes: an ordinary exit can hang in PyTorch's threads
        from nanogpt_lite.device import distributed

        distributed.hard_exit(status)
    sys.exit(status)
