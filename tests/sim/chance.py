"""Where a run's chance comes from: one generator for each concern.

For: everything in a simulation that draws. Must not know: what is drawn. The one idea: a generator of its own for each
concern, each seeded by an integer made of the run's seed and the concern's name, so that switching one class of faults
off leaves the draws of all others as they were, which is what makes shrinking a failure possible.
"""

import hashlib
import random


def chance_of(seed: int, concern: str) -> random.Random:
    """The generator of one concern of one run."""
    digest = hashlib.sha256(f"{seed}/{concern}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
