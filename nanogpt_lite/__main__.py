"""`python -m nanogpt_lite …` is the command `nanogpt-lite …`."""

import sys

from nanogpt_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
