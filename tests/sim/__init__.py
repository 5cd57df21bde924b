"""The simulator: whole clusters of the real code, on a clock, a network and disks that a seed makes.

With LOGD_MUTANT=<name> the code under test has that bug (`tests.mutants`): installed here, before anything of it is
imported.
"""

from tests.mutants.hook import install_from_environment

install_from_environment()
