"""What Ctrl-C does while a program is still being loaded, or is over: it ends the process, without a word.

For: the entry points, which call `begin` before they import anything that takes its time. Must not know: what is
loaded. The one idea: Python answers SIGINT with an exception from its first moment on, and before `run` nobody is there
to catch it; where nothing was begun yet the system's own answer is the right one, and a shell reports it as 130.
"""

# `signal` itself takes milliseconds to load, for its enumerations; this is what it is made on.
import _signal  # type: ignore[import-not-found]  # typeshed leaves it out


def begin() -> None:
    """From here on SIGINT ends the process. Who ignores it (`nohup`) still does."""
    _replace(_signal.default_int_handler, _signal.SIG_DFL)


def end() -> None:
    """From here on SIGINT is a KeyboardInterrupt again, if `begin` ended that: Python itself never leaves it so."""
    _replace(_signal.SIG_DFL, _signal.default_int_handler)


def _replace(old: object, new: object) -> None:
    try:
        if _signal.getsignal(_signal.SIGINT) == old:
            _signal.signal(_signal.SIGINT, new)
    except ValueError:
        # Not the main thread: some other program imports this, and knows what it does with signals.
        pass
