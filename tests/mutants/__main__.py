"""`python -m tests.mutants`: see the package."""

import sys

from tests.mutants.cli import main

sys.exit(main(sys.argv[1:]))
