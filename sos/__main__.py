"""`python -m sos` is the same as the command `sos`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
