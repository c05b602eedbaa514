#!/usr/bin/env python
"""What guidance, solvers, negative prompts, fixed tokens and a LoRA do to a model of captioned digits.

Guidance, solvers and tokens: the share of pictures that follow their prompt, seen and unseen in training (GenEval's
six kinds in miniature, `tools/text_benchmark.py digits`). Guidance: also the Fréchet distance of pictures of square
captions from pictures of the data set, both averaged to 8x8 pixels. Negative prompts and LoRA: what single digits look
like. Each writes a table and a sheet, of the same prompts and noise in every row.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import options

SOLVERS = (
    ('Adams, order 2', dict(type='AdamsFlowSampler', order=2)),
    ('Euler', dict(type='EulerFlowSampler')),
    ('Heun', dict(type='HeunFlowSampler')),
)
SHIFTS = (1.0, 3.0)
SQUARE, WIDE = (32, 32), (32, 64)
SHOWN = {
    SQUARE: ['a red three', 'a purple five', 'a nine on white', 'four green sixes'],
    WIDE: ['a red three to the left of a blue five', 'a green nine and a cyan two'],
}
TAUGHT = 'orange'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='of mm_configs/pixnerd_t2i_digits.py')
    parser.add_argument('--only', nargs='+', choices=STUDIES, default=list(STUDIES), help='which studies (all)')
    parser.add_argument('--text-encoder', type=Path, help='by default text_encoder beside the checkpoint')
    parser.add_argument('--lora', type=Path, help=f'of ablations/t2i_digits_lora.py, that teaches {TAUGHT}')
    parser.add_argument('--guidance', type=float, nargs='+', default=[1, 1.5, 2, 3, 4, 6, 8], help='scales to compare')
    parser.add_argument(
        '--steps', type=options.numbers(1), nargs='+', default=[5, 10, 15, 25, 50], help='of the solvers to compare'
    )
    parser.add_argument('--per-task', type=options.numbers(1), default=25, help='prompts of each of six kinds (25)')
    parser.add_argument('--num', type=options.numbers(200), default=400, help='pictures of a Fréchet distance (400)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the first scored picture (0)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/text_study'), help='folder for tables and sheets')
    options.add_device(parser)
    return parser.parse_args()


class Study:
    """A model, and what is measured of it."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.pipe = self.load()
        if not self.pipe.is_text:
            raise ValueError(f'{args.checkpoint} draws classes; this study is of prompts')
        self.pipe.check(['a red three'])  # there is a text encoder
        self.taught = None if args.lora is None else self.load(args.lora)

    def load(self, lora: Path | None = None):
        from pixnerd_plugin import load_pipeline

        return load_pipeline(self.args.checkpoint, self.args.text_encoder, device=self.args.device, lora=lora)

    def draw(self, prompts, seeds, size, sampler=None, pipe=None, scale: int = 1, **more):
        """Pictures (B, H, W, 3) uint8; ``scale`` times the size at the same tokens."""
        from pixnerd_plugin.images import to_uint8

        pipe = pipe or self.pipe
        if scale > 1:
            more['token_grid'] = tuple(side // pipe.net.patch_size for side in size)
        size = tuple(scale * side for side in size)
        return to_uint8(pipe.sample(prompts, seeds, size, sampler=sampler, **more))

    def followed(self, draw=None, **setting) -> dict[str, float]:
        """Shares of all pictures that follow their prompt, seen and unseen."""
        from pixnerd_plugin.evaluation.digit_benchmark import digit_prompts, follow

        def draw_batch(*batch):
            return (draw or self.draw)(*batch, **setting)

        shares = {}
        for name, unseen in (('seen', False), ('unseen', True)):
            tasks = follow(draw_batch, digit_prompts(unseen, self.args.per_task), self.args.seed)
            shares[name] = sum(tasks.values()) / len(tasks)
        return shares

    def row(self, **setting):
        """The prompts of the sheets at one setting, at four times the size."""
        import numpy as np

        pictures = [self.draw(texts, range(len(texts)), size, **setting) for size, texts in SHOWN.items()]
        enlarged = [part.repeat(4 * size[0] // part.shape[1], 1) for size, part in zip(SHOWN, pictures, strict=True)]
        enlarged = [part.repeat(4 * size[1] // part.shape[2], 2) for size, part in zip(SHOWN, enlarged, strict=True)]
        return np.concatenate([np.pad(one, ((0, 4), (0, 4), (0, 0))) for part in enlarged for one in part], axis=1)


def guidance(study: Study):
    """Prompts followed against Fréchet distance."""
    real, other, captions = real_pictures(study.args.num)
    floor = distance(real, other)
    rows, sheet = [], []
    for scale in study.args.guidance:
        sampler = study.pipe.sampler.replace(guidance_scale=scale)
        drawn = draw_all(study, captions, sampler)
        rows.append(dict(guidance=scale, **study.followed(sampler=sampler), frechet=distance(drawn, real)))
        sheet.append(study.row(sampler=sampler))
    rows.append(dict(guidance='pictures of the data set', frechet=floor))
    return rows, sheet


def real_pictures(num: int):
    """Twice ``num`` square pictures of the data set with another seed, and the captions of the second half."""
    import numpy as np

    from pixnerd_plugin.datasets import CaptionedDigits

    data = CaptionedDigits(num=8 * num, seed=1)
    square = [index for index in range(len(data)) if data.shape_of(index) == SQUARE][: 2 * num]
    pictures = np.stack([data[index]['img'] for index in square])
    return pictures[:num], pictures[num:], [data.scene(index).caption for index in square[num:]]


def draw_all(study: Study, captions, sampler):
    import numpy as np

    parts = [range(start, min(start + 100, len(captions))) for start in range(0, len(captions), 100)]
    return np.concatenate([study.draw([captions[i] for i in part], part, SQUARE, sampler=sampler) for part in parts])


def distance(drawn, real) -> float:
    """Fréchet distance of pictures (N, 32, 32, 3) uint8, averaged to 8x8, whose values are from -1 to 1."""
    import torch

    from pixnerd_plugin.evaluation.metrics import Statistics, frechet_distance

    def statistics(pictures):
        small = pictures.reshape(len(pictures), 8, 4, 8, 4, 3).mean((2, 4)) / 127.5 - 1
        return Statistics.of(torch.from_numpy(small.reshape(len(small), -1)))

    return frechet_distance(statistics(drawn), statistics(real))


def solver(study: Study):
    """Solvers, steps and shifts of the time grid."""
    from pixnerd_plugin.registry import MODELS, build

    settings = dict(guidance_scale=study.pipe.sampler.guidance_scale, noise_limit=study.pipe.sampler.noise_limit)
    rows, sheet = [], []
    for name, kind in SOLVERS:
        for shift in SHIFTS:
            for steps in study.args.steps:
                sampler = build(MODELS, dict(kind, num_steps=steps, timeshift=shift, **settings))
                shares = study.followed(sampler=sampler)
                rows.append(dict(solver=name, timeshift=shift, steps=steps, **shares))
                if shift == SHIFTS[-1] and name == SOLVERS[0][0]:
                    sheet.append(study.row(sampler=sampler))
    return rows, sheet


def negative(study: Study):
    """What a negative prompt does to single digits, of which the prompt names no colour."""
    from pixnerd_plugin.datasets.digit_scenes import noun
    from pixnerd_plugin.evaluation.digit_reader import read_digits

    prompts = [noun(value, None) for value in range(10)] * 10
    rows, sheet = [], []
    for words in ('', 'red', 'a red three', 'a three', 'on black'):
        pictures = study.draw(prompts, range(len(prompts)), SQUARE, negative_prompt=words)
        found = [read_digits(picture) for picture in pictures]
        single = [digits[0] if len(digits) == 1 else None for _, digits in found]
        right = sum(digit is not None and digit.value == i % 10 for i, digit in enumerate(single))
        rows.append(
            {
                'negative prompt': words or '(empty)',
                'red': sum(digit is not None and digit.colour == 'red' for digit in single) / len(single),
                'digit right': right / len(single),
                'on black': sum(ground == 'black' for ground, _ in found) / len(found),
            }
        )
        sheet.append(study.row(negative_prompt=words))
    return rows, sheet


def tokens(study: Study):
    """Larger pictures from the same tokens; averaged down to be read."""

    def draw_small(prompts, seeds, size, scale):
        pictures = study.draw(prompts, seeds, size, scale=scale)
        return pictures.reshape(len(pictures), size[0], scale, size[1], scale, 3).mean((2, 4)).round().astype('uint8')

    rows, sheet = [], []
    for scale in (1, 2, 4):
        rows.append(dict(size=f'{scale}x', **study.followed(draw=draw_small, scale=scale)))
        sheet.append(study.row(scale=scale))
    return rows, sheet


def lora(study: Study):
    """A seventh colour, taught from a few pictures: single digits of it, and what was known before."""
    from pixnerd_plugin.datasets.digit_scenes import COLOURS, is_new_colour_of, noun
    from pixnerd_plugin.evaluation.digit_benchmark import judge

    taught = [dict(prompt=noun(value, TAUGHT), value=value, colour=TAUGHT) for value in range(10)] * 5
    known = [
        dict(prompt=noun(value, colour), value=value, colour=colour)
        for value in range(10)
        for colour in COLOURS
        if not is_new_colour_of(value, colour)
    ]
    rows, sheet = [], []
    for name, pipe in (('without', study.pipe), ('with the LoRA', study.taught)):
        if pipe is None:
            continue
        row = dict(adapter=name)
        for title, wishes in ((f'{TAUGHT} digits', taught), ('digits of the six colours', known)):
            pictures = study.draw([wish['prompt'] for wish in wishes], range(len(wishes)), SQUARE, pipe=pipe)
            right = [judge(entry(wish), picture)[0] for wish, picture in zip(wishes, pictures, strict=True)]
            row[title] = sum(right) / len(right)
            if wishes is taught:
                sheet.append(pictures[:10].repeat(4, 1).repeat(4, 2).transpose(1, 0, 2, 3).reshape(128, -1, 3))
        rows.append(row)
    return rows, sheet


def entry(wish: dict) -> dict:
    from pixnerd_plugin.datasets.digit_scenes import DEFAULT_BACKGROUND, DIGITS

    include = [{'class': DIGITS[wish['value']], 'count': 1, 'color': wish['colour']}]
    return dict(include=include, background=DEFAULT_BACKGROUND)


STUDIES = dict(guidance=guidance, solver=solver, negative=negative, tokens=tokens, lora=lora)


def main(args: argparse.Namespace) -> None:
    import numpy as np

    from pixnerd_plugin.formats.atomic import atomic_path
    from pixnerd_plugin.images import save_png

    study = Study(args)
    for name in args.only:
        rows, sheet = STUDIES[name](study)
        save_png(args.out / f'{name}.png', np.concatenate(sheet))
        with atomic_path(args.out / f'{name}.json') as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + '\n')
        print(f'\n{STUDIES[name].__doc__}\n\n{table(rows)}', flush=True)


def table(rows: list[dict]) -> str:
    """A Markdown table: shares as percentages, distances to a hundredth."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ['---'] * len(columns)]
    lines += [[cell(name, row.get(name, '')) for name in columns] for row in rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def cell(name: str, value) -> str:
    if not isinstance(value, float) or name in ('guidance', 'timeshift'):
        return f'{value:g}' if isinstance(value, float) else str(value)
    return f'{value:.2f}' if name == 'frechet' else f'{100 * value:.0f} %'


if __name__ == '__main__':
    arguments = parse_args()
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)
