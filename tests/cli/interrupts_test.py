"""Ctrl-C ends a command, wherever the main thread is."""

import subprocess
import sys
import textwrap

import pytest

SWALLOWED = {
    "a callback of the garbage collector": "gc.callbacks.append(lambda *_: interrupt()); gc.collect()",
    "a destructor": "type('Last', (), {'__del__': lambda self: interrupt()})()",
    "code that catches everything": "swallow()",
}


@pytest.mark.parametrize("line", SWALLOWED.values(), ids=SWALLOWED)
def test_an_interrupt_that_was_swallowed_is_raised_again(line):
    code = f"""
    import contextlib, gc, os, signal, sys, time
    from audiolm_jax.cli import generate, interrupts, main
    interrupts.AGAIN = 0.2
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the suite itself may run in the background
    sent = []
    def interrupt():
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
    def swallow():
        with contextlib.suppress(BaseException):
            interrupt()
    def work(options):
        {line}
        for _ in range(100):
            time.sleep(0.1)
        print("went on")
    generate.run = work
    sys.argv = ["audiolm", "generate", "--checkpoint", "x", "--out", "y"]
    main.run()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr == "\naudiolm: stopped; what was finished is kept, and the same command again resumes\n"
