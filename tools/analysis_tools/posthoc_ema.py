#!/usr/bin/env python
"""Build the average (EMA) of any length of a training, after it, from the averages that PowerEMAHook stored.

  python tools/analysis_tools/posthoc_ema.py work_dirs/RUN --sigma-rel 0.03 0.08 --out work_dirs/RUN/posthoc

Lengths are shares of the training, as in EDM2 (Karras et al., 2024): 0.1 averages over about a tenth of it, with most
weight on the last steps. Each result is a network for tools/sample.py, tools/test.py and load_backbone.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Above it, the wanted profile is not what the stored ones can add up to.
LARGE_ERROR = 0.05


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', help='work folder of a training with PowerEMAHook, or its folder ema')
    parser.add_argument('--sigma-rel', type=float, nargs='+', required=True, help='lengths to build, such as 0.05')
    parser.add_argument('--iteration', type=int, help='where in the training (the last that was stored)')
    parser.add_argument('--out', type=Path, default=Path('posthoc'), help='folder for the networks (posthoc)')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from pixnerd_plugin.checkpoints.averages import build_average, find_snapshots, snapshot_name
    from pixnerd_plugin.functional.averages import exponent

    for sigma_rel in args.sigma_rel:
        exponent(sigma_rel)  # all are refused before any is built
    snapshots = find_snapshots(args.run)
    iteration = args.iteration or max(one.iteration for one in snapshots)
    args.out.mkdir(parents=True, exist_ok=True)
    total = len(args.sigma_rel) * sum(4 * tensor.numel for tensor in snapshots[0].tensors.values())
    with tqdm(total=total, desc='building', unit='B', unit_scale=True, disable=None) as bar:
        for sigma_rel in args.sigma_rel:
            path = args.out / snapshot_name(iteration, f'{sigma_rel:g}')
            error = build_average(snapshots, sigma_rel, path, iteration, bar.update)
            bar.write(f'{path}: its profile is {error:.2%} off'.replace('%', ' %'))
            if error > LARGE_ERROR:
                bar.write('  too far: store averages more often, or of lengths nearer to this one')


if __name__ == '__main__':
    arguments = parse_args()
    sys.path.insert(0, str(ROOT))
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)
