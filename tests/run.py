#!/usr/bin/env python
"""Run the tests in two pytest processes side by side; arguments are pytest's. The last line is the sum of both.

The processes share the files out between them as they go (``conftest.py``). What they print appears line by line until
one has something to report, which is then printed as a whole when it ends. PIXNERD_TEST_MINUTES (30) limits it all.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = re.compile(r'=* ?(?P<counts>\d+ \w+(?:, \d+ \w+)*|no tests ran) in [\d.]+s.*')
SECTION = re.compile(r'=+ (?!test session starts).*=+|[\w/.]+: error: .*')
KINDS = ('failed', 'passed', 'skipped', 'deselected', 'xfailed', 'xpassed', 'warning', 'error')
PROCESSES = 2


class Pytest:
    """A pytest process, and a thread that passes on what it prints."""

    def __init__(self, number: int, arguments: list[str], folder: str):
        # One thread each, or they would fight over the cores.
        environment = dict(os.environ, PIXNERD_TESTS_SHARED=folder, PYTHONUNBUFFERED='1', OMP_NUM_THREADS='1')
        # No percentages, as neither gets to all files, and no cache, which the other would write as well.
        options = ['-o', 'console_output_style=classic', '-p', 'no:cacheprovider', *['--no-header'][:number]]
        command = [sys.executable, '-m', 'pytest', *options, *arguments]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
        # A session of its own, so that all it starts can be ended with it.
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
        self.report: list[str] = []
        self.seconds = 0.0
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        start = time.monotonic()
        for line in self.process.stdout:
            if self.report or SECTION.fullmatch(line.rstrip()):
                self.report.append(line)
            else:
                print(line, end='', flush=True)
        print(''.join(self.report), end='', flush=True)
        self.seconds = time.monotonic() - start

    def counts(self) -> Counter:
        """How many passed, failed and so on; one that ended badly without a word has failed."""
        summary = SUMMARY.fullmatch(self.report[-1].rstrip()) if self.report else None
        counts = Counter()
        for number, kind in re.findall(r'(\d+) (\w+)', summary['counts'] if summary else ''):
            counts[kind.rstrip('s')] += int(number)
        if self.process.returncode or not summary:
            counts['failed'] = max(1, counts['failed'])
        return counts

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def wait(running: list[Pytest], seconds: float) -> bool:
    """Whether all end in time."""
    end = time.monotonic() + seconds
    for one in running:
        one.reader.join(max(0.0, end - time.monotonic()))
    return not any(one.reader.is_alive() for one in running)


def main(arguments: list[str]) -> int:
    start = time.monotonic()
    # SIGINT as well: it is ignored, here and by what is started here, where a shell has put this in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # yapf, which mmengine imports, writes a cache when it is first imported; two at once would read it half written.
    subprocess.run([sys.executable, '-c', 'import yapf'], stderr=subprocess.DEVNULL, check=False)
    with tempfile.TemporaryDirectory() as folder:
        running = [Pytest(number, arguments, folder) for number in range(PROCESSES)]
        try:
            if not wait(running, 60 * float(os.environ.get('PIXNERD_TEST_MINUTES', 30))):
                print('\nThe tests take too long; where they are:', flush=True)
                for one in running:
                    one.process.send_signal(signal.SIGABRT)
                wait(running, 10)
        except KeyboardInterrupt:
            for one in running:
                one.process.send_signal(signal.SIGINT)
            wait(running, 10)
        finally:
            for one in running:
                one.signal(signal.SIGKILL)
                one.process.wait()
            wait(running, 10)
    counts = sum((one.counts() for one in running), Counter())
    plural = {kind: f'{kind}s' for kind in ('warning', 'error') if counts[kind] > 1}
    text = ', '.join(f'{counts[kind]} {plural.get(kind, kind)}' for kind in KINDS if counts[kind])
    print(f'processes: {", ".join(f"{one.seconds:.0f} s" for one in running)}')
    print(f' {text} in {time.monotonic() - start:.2f}s '.center(80, '='), flush=True)
    return 1 if counts['failed'] else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
