#!/usr/bin/env python
"""Say what a file of weights is: architecture, parameters, dtypes, metadata, what loads it, and what is odd about it.

Exit code 1 if anything is odd.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# For a Python that looks for packages in its own folder alone, as ComfyUI's portable one does.
sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

import options  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'file', metavar='FILE', help='.ckpt, .pth, .safetensors (also an adapter or a field), its index, or a folder'
    )
    parser.add_argument(
        '--quick', action='store_true', help='headers only: do not look for NaN and zeros in the weights'
    )
    parser.add_argument('--json', action='store_true', help='print everything as one JSON object')
    options.add_imports(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    options.import_parts(args, args.file)
    from pixnerd_plugin.checkpoints.inspect import report

    result = report(args.file, values=not args.quick)
    if args.json:
        for text in json.dumps(result, indent=2, ensure_ascii=False, default=str).split('\n'):
            print(printable(text, escaped))
    else:
        show(result)
    if result['odd']:
        sys.exit(1)


def show(result: dict[str, Any]) -> None:
    line('file', f'{result["file"]} ({result["bytes"] / 1e6:,.1f} MB)')
    line('kind', result['kind'])
    for label, network in result.get('networks', {}).items():
        name = {'ema': 'EMA weights', 'raw': 'raw weights'}.get(label, 'weights')
        line(name, f'{network["parameters"]:,} parameters, {network.get("variant", "unknown architecture")}')
        line('  dtypes', ', '.join(f'{dtype} ({count} tensors)' for dtype, count in network['dtypes'].items()))
        line('  parts', ', '.join(f'{part} {count:,}' for part, count in network['parts'].items()))
    architectures = [network.get('architecture') for network in result.get('networks', {}).values()]
    if architectures and architectures[0]:
        line('architecture', json.dumps(architectures[0]))
    if 'lora' in result:
        line('LoRA', json.dumps(result['lora']))
    for label, lora in result.get('loras', {}).items():
        line(f'LoRA ({label})', json.dumps(lora))
    if 'projector' in result:
        line('projector', f'{result["projector"]:,} parameters')
    for name, value in result['metadata'].items():
        if name != 'architecture':
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            line(f'  {name}', text if len(text) < 200 else f'{text[:200]}…')
    if 'field' in result:
        line('field', json.dumps(result['field']))
    for sentence in result.get('took', []):
        line('took', sentence)
    if result.get('ignored'):
        line('also in it', ', '.join(result['ignored'][:8]) + (' …' if len(result['ignored']) > 8 else ''))
    line('loads with', ', '.join(result['loads_with']) or 'nothing')
    for sentence in result['odd']:
        line('ODD', sentence)


def line(name: str, text: str) -> None:
    print(f'{printable(name):14} {printable(text)}')


def printable(text: str, replaced: Callable[[str], str] = lambda char: '�') -> str:
    # What a file holds must not reach the terminal as commands to it.
    return ''.join(char if char.isprintable() else replaced(char) for char in text)


def escaped(char: str) -> str:
    return json.dumps(char)[1:-1]


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        try:
            main(arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            # Who reads has seen enough, as head has; Python would complain once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
