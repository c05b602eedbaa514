"""Some hundred mutations of valid files: a right load or one line, within the limits, and nothing else.

For a longer look: ``python -m tests.checkpoints.fuzz --count 20000``, or PIXNERD_FUZZ_COUNT.
"""

import os
from collections import Counter

from .fuzz import FORMATS, run
from .limited import FAULT, LOADED, REFUSED

COUNT = int(os.environ.get('PIXNERD_FUZZ_COUNT', 220))


def test_mutations_of_every_format_load_or_are_refused_in_one_line(tmp_path):
    counts = Counter()
    faults = run(COUNT, int(os.environ.get('PIXNERD_FUZZ_SEED', 1)), tmp_path, counts)
    assert not faults, '\n'.join(faults)
    assert sum(counts.values()) == COUNT
    for kind in set(FORMATS):
        assert counts[kind, REFUSED] > 0, f'no mutation of {kind} was refused'
    assert sum(counts[kind, LOADED] for kind in FORMATS) > COUNT / 10
    assert not any(counts[kind, FAULT] for kind in FORMATS)
