"""Reading a stranger's file in a child process, of limited time and memory, whose death does no harm."""

import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

SECONDS, BYTES = 10, 200 * 10**6
"""What any file may take, beside 1.2 times its size."""


class Outcome(NamedTuple):
    """What became of a call: the value, or the class and message of what it raised, or the signal it died of."""

    value: Any = None
    error: str = ''
    message: str = ''
    signal: int = 0


def limited(function: Callable[[], Any], size: int = 0, seconds: int = SECONDS, extra: int = BYTES) -> Outcome:
    """Call ``function`` in a forked child that may take ``extra`` more memory than now, and 1.2 times ``size``.

    Its value is pickled back. What does not fit into the memory raises there, and what takes longer dies of SIGALRM.
    """
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            # The threads of the parent are not there, and torch would wait for them.
            torch.set_num_threads(1)
            memory = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
            limit = memory + int(1.2 * size) + extra
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            signal.alarm(seconds)
            try:
                outcome = Outcome(value=function())
            except BaseException as error:
                outcome = Outcome(error=type(error).__name__, message=str(error))
            with os.fdopen(writing, 'wb') as pipe:
                pickle.dump(outcome, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        content = pipe.read()
    status = os.waitpid(child, 0)[1]
    return Outcome(signal=os.WTERMSIG(status)) if os.WIFSIGNALED(status) else pickle.loads(content)


def refusal(function: Callable[[], Any], size: int = 0) -> str:
    """The one line with which ``function`` refuses a file, within the limits."""
    outcome = limited(function, size)
    assert outcome.error in ('ValueError', 'FileNotFoundError', 'DamagedImage'), outcome
    assert '\n' not in outcome.message
    assert len(outcome.message) < 1000
    return outcome.message
