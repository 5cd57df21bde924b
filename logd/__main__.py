"""`python -m logd` is `logd`."""

from logd.cli.logd import main

main()
