"""Ctrl-C while a program is still being loaded ends it without a traceback."""

import signal
import subprocess
import sys

import pytest

# Sends the process the signal the moment a module is asked for.
# Whoever runs the tests in the background has the signal ignored, and so would everybody below.
LISTENING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
INTERRUPTED_AT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""


def interrupted(module: str, program: str, *words: str) -> tuple[int, str, str]:
    code = LISTENING + INTERRUPTED_AT.replace("MODULE", repr(module)) + program
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("program", "module"),
    [
        ("from logd.cli.logctl import main; main()", "click"),
        ("from logd.cli.logctl import main; main()", "logd.cli.runner"),
        ("from logd.cli.logd import main; main()", "click"),
        ("import runpy; runpy.run_module('logd', run_name='__main__')", "click"),
    ],
)
def test_ctrl_c_before_anything_began_ends_a_program_without_a_word(program: str, module: str) -> None:
    assert interrupted(module, program, "--version") == (-signal.SIGINT, "", "")


def test_ctrl_c_is_told_from_the_moment_on_at_which_somebody_can() -> None:
    code, out, err = interrupted("logd.cli.about", "from logd.cli.logctl import main; main()", "ping")
    assert (code, out, err.lstrip("\n")) == (130, "", "logctl: interrupted\n")


@pytest.mark.parametrize("module", ["logd.cli.logctl", "logd.cli.logd"])
def test_whoever_only_imports_a_program_keeps_ctrl_c(module: str) -> None:
    code = LISTENING + f"import {module}; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_whoever_ignores_ctrl_c_still_does() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import logd.cli.logctl;"
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_another_thread_may_import_a_program() -> None:
    code = (
        "import threading\n"
        "thread = threading.Thread(target=lambda: __import__('logd.cli.logctl'))\n"
        "thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
