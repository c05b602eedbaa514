"""How every command in ``tools/`` ends: errors in one line."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

# Extras of pyproject.toml that bring packages which a command may turn out to need.
_EXTRAS = {
    'mmengine': 'train',
    'mmcv': 'train',
    'transformers': 'train',
    'tensorboard': 'train',
    'PIL': 'train',
    'sklearn': 'demo',
    'matplotlib': 'demo',
    'peft': 'lora',
    'gradio': 'web',
    'wandb': 'wandb',
    'tifffile': 'tiff',
    'torch_fidelity': 'eval',
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line on stderr and exit code 1 for what its user can put right.

    That is every ValueError, OSError and FloatingPointError, too little memory, too much damaged data, a part that no
    registry knows, and an optional package that is not installed. Anything else is a fault of the program and keeps
    its traceback; PIXNERD_TRACEBACK=1 shows it for all of them.
    """
    show, warnings.showwarning = warnings.showwarning, _one_line_warning
    try:
        yield
    except KeyboardInterrupt:
        sys.exit('interrupted')
    except Exception as error:
        line = user_error(error)
        if line is None or os.environ.get('PIXNERD_TRACEBACK'):
            raise
        rank = f'[rank {os.environ["RANK"]}] ' if 'RANK' in os.environ else ''
        leave_for_the_launcher(f'{rank}error: {line}')
        sys.exit(f'{rank}error: {line}')
    finally:
        warnings.showwarning = show


def _one_line_warning(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
    """Show a warning to a user: without file, line and source. Those of packages to their developers are left out."""
    if issubclass(category, UserWarning):
        print(f'warning: {_one_line(str(message))}', file=sys.stderr, flush=True)


def leave_for_the_launcher(line: str) -> None:
    """Write ``line`` where the scripts that start torchrun look for it, unless another process came first.

    torchrun prints a traceback of its own after the line; they print the line again, last.
    """
    if 'PIXNERD_LAST_WORDS' in os.environ:
        start = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
        try:
            with open(f'{os.environ["PIXNERD_LAST_WORDS"]}_{start}', 'x', encoding='utf-8') as file:
                file.write(f'{line}\n')
        except OSError:
            return


def user_error(error: Exception) -> str | None:
    """The one line that tells a user what to put right; None if ``error`` is a fault of the program."""
    if isinstance(error, ImportError):
        return _missing_package(error)
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return _one_line(str(error)) or type(error).__name__
    # torch raises a class of its own for GPUs, and a plain RuntimeError for the rest.
    if isinstance(error, MemoryError) or 'OutOfMemory' in type(error).__name__ or "can't allocate memory" in str(error):
        return 'out of memory; ask for smaller or fewer pictures at once'
    if isinstance(error, KeyError) and 'registry' in str(error):
        # A transform that is not known may be one of mmcv's, which are there when mmcv is.
        hint = '' if find_spec('mmcv') else ' (mmcv is not installed: pip install mmcv-lite)'
        return _one_line(str(error.args[0])) + hint
    return _one_line(str(error)) if type(error).__name__ == 'TooManyDamaged' else None


def _missing_package(error: ImportError) -> str | None:
    # mmengine's registry and its visualizers raise the error anew, without its name, and with advice of several names.
    advice = re.findall(r'(?:No module named |install )[\'"]?([\w\- .]+)', str(error))
    names = [error.name or '', *' '.join(advice).split()]
    known = [name for name in (name.split('.')[0].replace('-', '_') for name in names) if name in _EXTRAS]
    if not known:
        return None
    package = known[0]
    return f"{package} is not installed; install it: pip install 'pixnerd-plugin[{_EXTRAS[package]}]'"


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # A loader's worker passes its whole traceback on, the message last.
    line = lines[-1] if lines and lines[0].startswith('Caught ') else ' '.join(lines)
    # The name of a stranger's file must not reach the terminal as commands to it.
    return ''.join(char if char.isprintable() else '�' for char in line)
