#!/usr/bin/env python
"""The two ends of `make demo`: text encoder and captions for training, and the trained model's pictures and score.

prepare: writes a tiny random Qwen3 that knows the words of the captions, the embeddings of all captions, and a
classifier of coloured digits, the teacher of representation alignment. draw: a contact sheet, the loss curve, and how
many pictures follow their prompts.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import demo_digits
import demo_teacher
import options
import precompute_text

CONFIG = 'mm_configs/pixnerd_t2i_digits.py'
SCALES = (1, 2, 4)
SQUARE, WIDE, TALL = (32, 32), (32, 64), (64, 32)
# Rows of the sheet. Those with a star ask for what training never shows.
SHEET = (
    (
        SQUARE,
        (
            'a red three',
            'a cyan seven on brown',
            'three blue eights',
            'four green sixes *',
            'a green five *',
            'a nine on white *',
        ),
    ),
    (
        WIDE,
        (
            'a red three to the left of a blue five',
            'a purple four and a green six',
            'a yellow two , a red zero and a green one in a row',
        ),
    ),
    (
        TALL,
        (
            'a green nine above a red two',
            'a yellow eight below a blue five',
            'two sevens on grey',
            'a red six above a cyan three *',
            'a blue one , a purple four and a red two in a column',
            'four purple twos *',
        ),
    ),
)
MARGIN, TEXT_SIZE = 14, 14


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    prepare, draw = commands.add_parser('prepare'), commands.add_parser('draw')
    prepare.add_argument('--config', default=CONFIG, help='config of the training')
    prepare.add_argument('--work-dir', type=Path, help="of the training (the config's)")
    prepare.add_argument(
        '--teacher-steps',
        type=options.numbers(1),
        default=1200,
        help='training steps of the teacher, where none is there (1200)',
    )
    draw.add_argument('--work-dir', type=Path, default=Path('work_dirs/t2i_digits'), help='of the training')
    draw.add_argument('--seed', type=int, default=0, help='seed of the first picture (0)')
    draw.add_argument(
        '--per-task', type=options.numbers(1), default=50, help='prompts of each kind, seen and unseen (50)'
    )
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> None:
    import pixnerd_plugin.engine  # noqa: F401 (registers what configs name)

    # isort: split
    from pixnerd_plugin.datasets.digit_scenes import WORDS
    from pixnerd_plugin.engine.config import load_config
    from pixnerd_plugin.engine.resume import find_checkpoint
    from pixnerd_plugin.formats.atomic import atomic_path
    from pixnerd_plugin.models.conditioners.tiny_qwen3 import write_tiny_qwen3
    from pixnerd_plugin.pipeline import TEXT_ENCODER
    from pixnerd_plugin.registry import DATASETS, build

    config = load_config(args.config)
    dataset = build(DATASETS, dict(config.train_dataloader.dataset, pipeline=[]))
    work_dir = args.work_dir or Path(config.work_dir)
    encoder, text, captions = (work_dir / name for name in (TEXT_ENCODER, 'text', 'captions.txt'))
    settings = (WORDS, config.model.conditioner.max_length, config.model.backbone.text_dim)
    with tempfile.TemporaryDirectory() as fresh:
        write_tiny_qwen3(fresh, *settings)
        missing = ['text encoder'] * (read_files(encoder) != read_files(Path(fresh)))
    teacher = config.model.loss.get('teacher')
    if teacher is not None and teacher.type == 'ClassifierTeacher' and not demo_teacher.is_ready(Path(teacher.weights)):
        missing.append('teacher')
    if missing and find_checkpoint(work_dir) is not None:
        raise ValueError(
            f'{work_dir} holds a run that was trained with another {" and ".join(missing)}, of an earlier version, '
            'say; move that folder away, or name a new one with --work-dir'
        )
    if 'text encoder' in missing:
        if text.is_dir():
            shutil.rmtree(text)  # made by another encoder
        write_tiny_qwen3(encoder, *settings)
    print(f'A random Qwen3 that knows {len(WORDS)} words and endings: {encoder}')
    lines = dict.fromkeys(caption for index in range(len(dataset)) for caption in dataset.captions(index))
    with atomic_path(captions) as temporary:
        temporary.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    flags = ['--model', encoder, '--max-length', config.model.conditioner.max_length, '--batch-size', 256]
    precompute_text.main(precompute_text.parse_args([str(word) for word in (captions, text, *flags)]))
    if 'teacher' in missing:
        demo_teacher.write_teacher(Path(teacher.weights), config.train_dataloader.dataset, args.teacher_steps)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob('*'))}


def draw(args: argparse.Namespace) -> None:
    from pixnerd_plugin import load_pipeline
    from pixnerd_plugin.engine.resume import find_checkpoint
    from pixnerd_plugin.images import save_png

    path = find_checkpoint(args.work_dir)
    if path is None:
        raise FileNotFoundError(f'no checkpoint in {args.work_dir}; train one first: make demo')
    pipe = load_pipeline(path, device='cpu')
    sheet, curve = args.work_dir / 'sheet.png', args.work_dir / 'loss.png'
    save_png(sheet, draw_sheet(pipe, args.seed))
    demo_digits.draw_loss(args.work_dir, curve, 'PixNerd on captions of digits')
    print(f'prompts and pictures: {sheet}')
    print(f'loss: {curve}')
    followed = {}
    for unseen in (False, True):
        name = 'unseen' if unseen else 'seen'
        tasks = score(pipe, unseen, args.per_task, args.seed)
        print(f'{name}: ' + ', '.join(f'{task.replace("_", " ")} {share:.1%}' for task, share in tasks.items()))
        followed[name] = sum(tasks.values()) / len(tasks)
    print(
        'prompts followed: ' + ', '.join(f'{share:.1%} {name}' for name, share in followed.items()).replace('%', ' %')
    )


def draw_sheet(pipe, seed: int):
    """A contact sheet, uint8 (H, W, 3): each prompt with its picture at 4x, and the first row at all scales."""
    import numpy as np

    from pixnerd_plugin.images import to_uint8

    strips = []
    for shape, prompts in SHEET:
        texts = [prompt.removesuffix(' *') for prompt in prompts]
        _, field = pipe.sample(texts, range(seed, seed + len(texts)), shape, record_field=True)
        renders = {scale: to_uint8(field.decode(tuple(scale * side for side in shape), blend=0.5)) for scale in SCALES}
        strips.append(strip(renders[max(SCALES)], [prompt.replace(' ,', ',') for prompt in prompts]))
        if shape == SQUARE:
            same = [demo_digits.enlarge(renders[scale], max(SCALES) // scale) for scale in SCALES]
    for scale, pictures in zip(SCALES, same, strict=True):
        strips.append(strip(pictures, [f'the first row at {scale}x' if scale > 1 else 'the first row as sampled']))
    strips.append(text_block(f'* never shown in training. {len(SCALES)} renderings of one sampling run.', 10**6))
    width = max(part.shape[1] for part in strips)
    rows = [np.pad(part, ((0, MARGIN), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in strips]
    return np.pad(np.concatenate(rows), ((MARGIN, 0), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def strip(pictures, texts: list[str]):
    """Pictures (n, H, W, 3) in a row, with their texts below, or one text below the first."""
    import numpy as np

    count, height, width, _ = pictures.shape
    room = width if len(texts) > 1 else count * (width + MARGIN)
    blocks = [text_block(text, room) for text in texts]
    below = max(block.shape[0] for block in blocks)
    canvas = np.full((height + below, count * (width + MARGIN) - MARGIN, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        canvas[:height, index * (width + MARGIN) :][:, :width] = picture
    for index, block in enumerate(blocks):
        part = canvas[height:, index * (width + MARGIN) :]
        part[: block.shape[0], : block.shape[1]] = block[:, : part.shape[1]]
    return canvas


def text_block(text: str, width: int):
    """A text in lines of at most ``width`` pixels, uint8 (H, W, 3)."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(TEXT_SIZE)
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    line_height = TEXT_SIZE + 4
    block = Image.new('RGB', (round(max(map(font.getlength, lines))) + 2, line_height * len(lines) + 4), 'white')
    for index, line in enumerate(lines):
        ImageDraw.Draw(block).text((0, index * line_height + 2), line, fill='black', font=font)
    return np.asarray(block)


def score(pipe, unseen: bool, per_task: int, seed: int) -> dict[str, float]:
    """Share of pictures that follow their prompt, by task; one picture a prompt."""
    from pixnerd_plugin.evaluation.digit_benchmark import digit_prompts, follow
    from pixnerd_plugin.images import to_uint8

    def draw_batch(prompts, seeds, size):
        return to_uint8(pipe.sample(prompts, seeds, size))

    return follow(draw_batch, digit_prompts(unseen, per_task), seed)


if __name__ == '__main__':
    arguments = parse_args()
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        dict(prepare=prepare, draw=draw)[arguments.command](arguments)
