"""`python -m tessera` and `accelerate launch -m tessera` are the command `tessera`."""

import sys

from tessera.cli import main

if __name__ == "__main__":
    sys.exit(main())
