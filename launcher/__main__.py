"""`python -m launcher`, for where the command `gradacc` is not on the PATH."""

import sys

from launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
