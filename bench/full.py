"""All questions at length: runs of five seconds, so that background work (segment syncs, compactions) is in them.

`python -m bench.full [--runs 7] [--json FILE]`; see `bench.quick` for what both have in common.
"""

from __future__ import annotations

import sys

from bench.quick import run_suite

if __name__ == "__main__":
    sys.exit(run_suite(__doc__ or "", None, seconds=5.0))
