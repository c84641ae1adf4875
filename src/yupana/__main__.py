"""`python -m yupana`."""

import sys

from yupana.cli import main

if __name__ == "__main__":
    sys.exit(main())
