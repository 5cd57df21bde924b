"""Makes a failing run smaller.

For: whoever has to understand a failure. Must not know: what failed. The one idea: try less of everything, one thing
at a time, and keep what still fails; since every concern draws from its own generator, less of one leaves the others
as they were.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.sim.cluster import Options, Result, simulate

ATTEMPTS_MAX = 60


def shrink(failed: Result, on_smaller: Callable[[Options], None] = lambda _: None) -> Options:
    """The smallest options found that fail, in whatever way, beginning with those of a run that did."""
    best = _ended(failed)
    attempts = 0
    improved = True
    while improved and attempts < ATTEMPTS_MAX:
        improved = False
        for smaller in _smaller(best):
            attempts += 1
            if attempts > ATTEMPTS_MAX:
                break
            result = simulate(smaller)
            if result.failure:
                best = _ended(result)
                on_smaller(best)
                improved = True
                break
    return best


def _ended(result: Result) -> Options:
    """No longer than until it failed, rounded up to a tenth of a second."""
    seconds = math.ceil(result.simulated_us / 1e5) / 10
    shorter = replace(result.options, seconds=min(result.options.seconds, seconds))
    if shorter.seconds == result.options.seconds:
        return result.options
    again = simulate(shorter)
    return shorter if again.failure else result.options


def _smaller(options: Options) -> Iterator[Options]:
    classes = options.classes or ()
    if len(classes) > 2:
        half = len(classes) // 2
        yield replace(options, classes=classes[:half])
        yield replace(options, classes=classes[half:])
    for name in classes:
        yield replace(options, classes=tuple(known for known in classes if known != name))
    assert options.nodes is not None
    assert options.groups is not None
    for groups in range(1, options.groups):
        yield replace(options, groups=groups)
    for nodes in range(3, options.nodes):
        yield replace(options, nodes=nodes)
    if options.seconds > 2:
        yield replace(options, seconds=round(options.seconds / 2, 1))
