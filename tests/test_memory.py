import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='this is a matter of glibc')
def test_freed_memory_stays_with_the_process():
    program = """
import numpy as np
from pixnerd_plugin.memory import keep_freed_memory, memory
KEEP
for _ in range(3):
    block = np.ones(2**24)
    del block
print(memory('VmRSS')[0])
"""
    resident = [
        float(subprocess.check_output([sys.executable, '-c', program.replace('KEEP', call)], text=True))
        for call in ('', 'keep_freed_memory()')
    ]
    assert resident[1] > resident[0] + 100
