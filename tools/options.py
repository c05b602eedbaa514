"""Options that several commands read alike. Nothing here imports torch: ``--help`` answers at once."""

import argparse
import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def size(text: str) -> tuple[int, int]:
    """``'512x768'`` to height and width, ``'64'`` to both."""
    match = re.fullmatch(r'(\d+)(?:[xX×](\d+))?', text.strip())
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if 0 in sides:
        raise ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH, such as 512x768, or one number for both')
    return sides


def region(text: str) -> tuple[int, int, int, int]:
    """``'0,0,256,512'`` to top, left, bottom and right."""
    if not re.fullmatch(r'\d+(,\d+){3}', text):
        raise ArgumentTypeError(f'{text!r} is not TOP,LEFT,BOTTOM,RIGHT in pixels, such as 0,0,256,512')
    top, left, bottom, right = map(int, text.split(','))
    return top, left, bottom, right


def interval(text: str) -> tuple[float, float]:
    """``'0.1,1'`` to its two ends."""
    try:
        low, high = map(float, text.split(','))
    except ValueError:
        raise ArgumentTypeError(f'{text!r} is not MIN,MAX, such as 0.1,1') from None
    return low, high


def numbers(low: int) -> Callable[[str], int]:
    """A reader of whole numbers from ``low`` on."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f'{text!r} is no whole number') from None
        if value < low:
            raise ArgumentTypeError(f'must be at least {low}, got {value}')
        return value

    return number


def words(text: str) -> list[str]:
    """``'1,2'`` to its parts, for options that people separate by commas or by spaces."""
    return [part.strip() for part in text.split(',') if part.strip()]


def add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument('--device', help="'cuda', 'cpu', ...; by default a GPU if there is one")


def add_compute(parser: argparse._ActionsContainer) -> None:
    """What a network that draws computes in, and how a CPU holds its weights."""
    parser.add_argument(
        '--dtype',
        choices=['float32', 'bfloat16', 'float16', 'auto'],
        help="of the network; by default the checkpoint's. auto: bfloat16 where the device has instructions for it",
    )
    parser.add_argument(
        '--pack',
        action=argparse.BooleanOptionalAction,
        help='hold the weights as products on a CPU read them; by default where that is faster (AVX2, AVX-512)',
    )


def add_imports(parser: argparse._ActionsContainer) -> None:
    """Parts of the user's own; :func:`import_parts` imports them."""
    parser.add_argument(
        '--import',
        nargs='+',
        action='extend',
        default=[],
        dest='imports',
        metavar='MODULE',
        help='modules to import first, which register parts of your own',
    )
    parser.add_argument(
        '--import-config',
        action='store_true',
        help='also import what the config in the checkpoint does (custom_imports): only for files that you trust',
    )


def import_parts(args: argparse.Namespace, checkpoint: str | Path | None = None) -> None:
    from pixnerd_plugin.checkpoints.own_parts import import_parts, modules_of

    modules = list(args.imports)
    if args.import_config:
        if checkpoint is None or not (found := modules_of(checkpoint)):
            raise ValueError(f'--import-config: {checkpoint} holds no config of a training that imports anything')
        print(f'importing {", ".join(found)}, as the config in {checkpoint} does')
        modules += found
    import_parts(modules)


def add_workers(parser: argparse._ActionsContainer, what: str) -> None:
    parser.add_argument(
        '--workers', type=numbers(1), default=os.cpu_count(), metavar='N', help=f'{what} (default: all cores)'
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """What every command takes that reads a config and may run on several processes."""
    # Read by engine.config, as mmengine's own DictAction would have to be imported before --help is answered.
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='replace config entries'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
