#!/usr/bin/env python
"""Convert weights: from whatever holds a PixNerd network to what the next program reads.

IN is a published .ckpt, a .pth of tools/train.py or another trainer, a .safetensors in any known key layout, the index
of one in pieces, a diffusers folder of PixNerd, an adapter (LoRA, LoHa, LoKr; a file, or a folder that PEFT saved), or
the folder of a Qwen3 text encoder in transformers layout. The suffix of OUT says what to write:

  OUT.safetensors   one file for ComfyUI's models/diffusion_models and for load_backbone
                    (of a Qwen3 folder: for models/text_encoders; of an adapter: for models/loras)
  OUT.pth           to train from: tools/train.py CONFIG --cfg-options load_from=OUT.pth
  OUT.ckpt          in the published layout, for the released code

Memory is needed for the largest tensor, not for the file.
"""

import argparse
import signal
import sys
from pathlib import Path

# For a Python that looks for packages in its own folder alone, as ComfyUI's portable one does.
sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

import options  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, metavar='IN')
    parser.add_argument('target', type=Path, metavar='OUT')
    parser.add_argument(
        '--layout',
        choices=['comfyui', 'mmengine', 'published', 'lora'],
        help='instead of what the suffix says: published also as .safetensors; lora for the adapter that a training '
        'with LoRA made, for ComfyUI and --merge-lora',
    )
    parser.add_argument('--weights', choices=['ema', 'raw'], help='by default both if OUT can hold both, else ema')
    parser.add_argument(
        '--dtype',
        choices=['float32', 'bfloat16', 'float16', 'float8'],
        help="by default that of IN; float8 keeps the field and all but the blocks' matrices in bfloat16",
    )
    parser.add_argument('--resolution', type=int, help='side of the training pictures, if IN does not tell')
    parser.add_argument(
        '--merge-lora',
        nargs='+',
        default=[],
        metavar='FILE[:STRENGTH]',
        help='adapters to add to the weights',
    )
    parser.add_argument('--force', action='store_true', help='replace OUT if it exists')
    options.add_imports(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    options.import_parts(args, args.source)
    from pixnerd_plugin.checkpoints.convert import convert
    from pixnerd_plugin.checkpoints.lora import convert_lora, is_lora, parse_lora
    from pixnerd_plugin.checkpoints.text_encoder import convert_text_encoder, is_text_encoder

    if is_text_encoder(args.source):
        convert_text_encoder(args.source, args.target, args.dtype, args.force)
        print(f'{args.target}: text encoder')
        return
    if is_lora(args.source):
        lora = convert_lora(args.source, args.target, args.dtype, args.force)
        print(f'{args.target}: adapters of {len(lora.adapters)} weights')
        if lora.skipped:
            print(f'Left out, as parts of another text encoder: {", ".join(lora.skipped[:3])} ({len(lora.skipped)})')
        return
    metadata = convert(
        args.source,
        args.target,
        layout=args.layout,
        weights=args.weights,
        dtype=args.dtype,
        resolution=args.resolution,
        loras=[parse_lora(text) for text in args.merge_lora],
        force=args.force,
    )
    weights = {'both': 'EMA and raw weights', 'ema': 'EMA weights', 'raw': 'raw weights', None: 'weights'}
    print(f'{args.target}: {metadata["variant"]}, {weights[metadata.get("weights")]}')
    if 'resolution' not in metadata:
        print('The training resolution is not known; write it into the file with --resolution.')


def stop(number: int, frame: object) -> None:
    """End as by an error, so that what is half written is removed."""
    sys.exit(128 + number)


if __name__ == '__main__':
    arguments = parse_args()
    signal.signal(signal.SIGTERM, stop)
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)
