import signal
import sys

import pytest

from pixnerd_plugin.engine import preemption
from pixnerd_plugin.engine.preemption import save_seconds
from tests.training import ROOT, run_tool

PROGRAM = """
import contextlib, os, signal, time
from pixnerd_plugin.engine import preemption
preemption.watch()
with {block}:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({seconds})
    os._exit(0)
"""


@pytest.mark.parametrize(
    ('block', 'seconds', 'code'),
    [('preemption.busy()', 1, 0), ('contextlib.nullcontext()', 100, 128 + signal.SIGTERM)],
    ids=['saving', 'stuck'],
)
def test_a_process_that_is_stuck_is_ended_and_one_that_saves_is_not(block, seconds, code):
    done = run_tool(sys.executable, '-c', PROGRAM.format(block=block, seconds=seconds), SAVE_SECONDS='1')
    assert done.returncode == code, done.stderr
    assert ('No step has ended for 0.2 s' in done.stderr) == (code != 0)


@pytest.mark.parametrize('main', [True, False])
def test_the_watchdog_waits_for_steps_and_saves(main, monkeypatch):
    monkeypatch.setattr(preemption, 'is_main_process', lambda: main)
    preemption.step_ended()
    watchdog = preemption.Watchdog(120, 0)
    assert [watchdog.is_stuck(now) for now in (1, 119, 121)] == [False, False, True]
    preemption.step_ended()
    assert [watchdog.is_stuck(now) for now in (130, 249, 251)] == [False, False, True]
    with preemption.busy():
        assert not watchdog.is_stuck(100_000)
    # Rank 0 has saved; the others may still wait for it, until a step with it has ended.
    assert [watchdog.is_stuck(now) for now in (100_119, 100_121)] == [False, main]
    preemption.step_ended()
    assert [watchdog.is_stuck(now) for now in (200_000, 200_119, 200_121)] == [False, False, True]


def test_the_time_to_save_is_one_for_all(monkeypatch):
    monkeypatch.delenv('SAVE_SECONDS', raising=False)
    assert save_seconds() == 600
    assert 'SAVE_SECONDS:-600' in (ROOT / 'tools/dist_train.sh').read_text()
    monkeypatch.setenv('SAVE_SECONDS', '90')
    assert save_seconds() == 90
    for text in ('soon', '-1', '0', 'nan', 'inf'):
        monkeypatch.setenv('SAVE_SECONDS', text)
        with pytest.raises(ValueError, match=f"SAVE_SECONDS must be a number of seconds above 0, got '{text}'"):
            save_seconds()
