#!/usr/bin/env python
"""Draw the pictures of GenEval and DPG-Bench where their scorers look for them, and read what the scorers write.

geneval, dpg: draw, on one process or several (torchrun); pictures already there are kept. The prompts are your copy of
the benchmark's. table: the rows of the paper's Tables 4 and 5 from the scorers' outputs. digits, score: GenEval in
miniature for models of CaptionedDigits; the first writes its prompts, the second reads the digits in the pictures.

    tools/text_benchmark.py geneval mm_configs/pixnerd_xxl16_t2i_512.py T2I.ckpt prompts/evaluation_metadata.jsonl
    tools/text_benchmark.py dpg mm_configs/pixnerd_xxl16_t2i_512.py T2I.ckpt ELLA/dpg_bench/prompts
    tools/text_benchmark.py table --geneval results.jsonl --dpg results.txt
"""

import argparse
import json
from pathlib import Path

import options

# Quoted from the paper (PixelNerd-XXL/16), in the order of its columns.
PAPER_GENEVAL = (0.97, 0.86, 0.44, 0.83, 0.71, 0.53, 0.73)
PAPER_DPG = (80.5, 87.9, 87.2, 91.3, 72.8, 80.9)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, prompts in (('geneval', 'evaluation_metadata.jsonl'), ('dpg', 'folder of prompts, *.txt')):
        command = commands.add_parser(name, help=f'draw; prompts: {prompts}')
        command.add_argument('config', help='config file of a text-to-image model')
        command.add_argument('checkpoint', help='its weights, published or trained; the EMA is used')
        command.add_argument('prompts', type=Path, help=prompts)
        command.add_argument('--work-dir', help=f'folder to write {name}/ into (work_dirs/NAME_OF_CONFIG)')
        command.add_argument('--out', type=Path, help=f'folder to write, in place of WORK_DIR/{name}')
        command.add_argument('--seed', type=int, default=0, help='seed of the first picture of every prompt (0)')
        command.add_argument('--batch-size', type=int, default=8, help='pictures sampled at once by a process (8)')
        command.add_argument('--limit', type=int, help='only the first so many prompts')
        command.add_argument(
            '--overwrite', action='store_true', help='throw away pictures of another run in the folder'
        )
        options.add_config_options(command)
    digits = commands.add_parser('digits', help='write prompts of the six kinds of GenEval for coloured digits')
    digits.add_argument('out', type=Path, help='file to write, such as digits.jsonl')
    digits.add_argument('--unseen', action='store_true', help='combinations that training never shows')
    digits.add_argument('--per-task', type=options.numbers(1), default=25, help='prompts of each kind (25)')
    digits.add_argument('--seed', type=int, default=0, help='another seed, other prompts (0)')
    score = commands.add_parser('score', help='read the digits in the pictures that geneval drew')
    score.add_argument('folder', type=Path, help='where geneval wrote them')
    score.add_argument('--outfile', type=Path, default=Path('results.jsonl'), help='file to write (results.jsonl)')
    table = commands.add_parser('table', help="the paper's Tables 4 and 5")
    table.add_argument('--geneval', type=Path, metavar='JSONL', help='output of evaluate_images.py')
    table.add_argument('--dpg', type=Path, metavar='TXT', help='output of compute_dpg_bench.py')
    table.add_argument('--name', default='this model', help='name of the row')
    return parser.parse_args()


def draw(args: argparse.Namespace) -> None:
    from mmengine.device import get_device
    from mmengine.dist import barrier, get_dist_info
    from mmengine.registry import init_default_scope
    from tqdm import tqdm

    import pixnerd_plugin.engine  # noqa: F401 (registers what configs name)
    from pixnerd_plugin.checkpoints import read_checkpoint
    from pixnerd_plugin.engine.config import hide_broken_torchvision, load_config
    from pixnerd_plugin.engine.processes import set_up_processes, tear_down_processes
    from pixnerd_plugin.evaluation import text_benchmarks as benchmarks
    from pixnerd_plugin.evaluation.generate import digest_weights, draw_images, image_size_of, load_model
    from pixnerd_plugin.images import save_png

    if args.batch_size < 1:
        raise ValueError(f'--batch-size must be at least 1, got {args.batch_size}')
    read = benchmarks.read_geneval_prompts if args.command == 'geneval' else benchmarks.read_dpg_prompts
    make_jobs = benchmarks.geneval_jobs if args.command == 'geneval' else benchmarks.dpg_jobs
    prompts = read(args.prompts)[: args.limit]
    args.out = args.out or Path(args.work_dir or f'work_dirs/{Path(args.config).stem}') / args.command
    read_checkpoint(args.checkpoint)  # ends here if it cannot be read
    hide_broken_torchvision()
    config = load_config(args.config, args.cfg_options)
    size = image_size_of(config, args.checkpoint)
    set_up_processes(config, args.launcher)
    init_default_scope('pixnerd')
    model = load_model(config, args.checkpoint, get_device())
    if hasattr(model.conditioner, 'num_classes'):
        raise ValueError(f'{args.config} draws classes, and {args.command} is a benchmark of prompts')

    common = dict(weights=digest_weights(model.backbone), sampler=model.sampler.config(), size=size)

    def parameters(job) -> str:
        return json.dumps(dict(common, size=job.size or size, prompt=job.prompt, seed=args.seed + job.sample))

    rank, world_size = get_dist_info()
    if rank == 0:
        benchmarks.claim(args.out, json.loads(json.dumps(dict(common, seed=args.seed))), prompts, args.overwrite)
    barrier()
    jobs = make_jobs(prompts, args.out, benchmarks.IMAGES_PER_PROMPT)
    own = jobs[rank::world_size]
    todo = [job for job in own if not benchmarks.is_drawn(job, parameters(job))]
    if len(todo) < len(own) and rank == 0:
        print(f'{len(own) - len(todo)} of {len(own)} pictures are there already')
    with tqdm(total=len(todo), desc=args.command, unit='picture', disable=None if rank == 0 else True) as bar:
        for batch in batches(todo, args.batch_size):
            # Picture k of every prompt starts from the same noise, as in the release.
            seeds = [args.seed + job.sample for job in batch]
            images = draw_images(model, dict(text=[job.prompt for job in batch]), seeds, batch[0].size or size)
            for job, image in zip(batch, images, strict=True):
                save_png(job.path, image, dict(pixnerd=parameters(job)))
            bar.update(len(batch))
    barrier()
    if rank == 0:
        finish(args, prompts, size)
    tear_down_processes()


def batches(jobs: list, batch_size: int):
    """The jobs in batches of one size of pictures each."""
    for size in dict.fromkeys(job.size for job in jobs):
        same = [job for job in jobs if job.size == size]
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


def finish(args: argparse.Namespace, prompts: list, size: tuple[int, int]) -> None:
    """Write what belongs to the pictures, and say how to score them."""
    from pixnerd_plugin.evaluation import text_benchmarks as benchmarks

    print(f'{len(prompts)} prompts in {args.out}; score them with the benchmark itself:')
    if args.command == 'geneval':
        benchmarks.write_geneval_metadata(prompts, args.out)
        print(f'  python evaluation/evaluate_images.py {args.out} --outfile results.jsonl --model-path DETECTOR')
    else:
        benchmarks.write_dpg_grids(prompts, args.out)
        print(
            f'  accelerate launch dpg_bench/compute_dpg_bench.py --image-root-path {args.out / "grids"} '
            f'--resolution {size[0]} --pic-num {benchmarks.IMAGES_PER_PROMPT} --res-path results.txt'
        )


def write_digit_prompts(args: argparse.Namespace) -> None:
    from pixnerd_plugin.evaluation.digit_benchmark import digit_prompts
    from pixnerd_plugin.formats.atomic import atomic_path

    if args.seed < 0:
        raise ValueError(f'--seed {args.seed} must be at least 0')
    prompts = digit_prompts(args.unseen, args.per_task, args.seed)
    with atomic_path(args.out) as temporary:
        temporary.write_text(''.join(f'{json.dumps(prompt)}\n' for prompt in prompts), encoding='utf-8')
    print(f'{len(prompts)} prompts in {args.out}')


def score(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from pixnerd_plugin.evaluation.digit_benchmark import score_pictures
    from pixnerd_plugin.formats.atomic import atomic_path

    results = list(tqdm(score_pictures(args.folder), 'reading', unit='picture', disable=None))
    with atomic_path(args.outfile) as temporary:
        temporary.write_text(''.join(f'{json.dumps(result)}\n' for result in results), encoding='utf-8')
    followed = sum(result['correct'] for result in results)
    print(f'{followed} of {len(results)} pictures follow their prompt: {args.outfile}')


def table(args: argparse.Namespace) -> None:
    from pixnerd_plugin.evaluation import text_benchmarks as benchmarks

    if not args.geneval and not args.dpg:
        raise ValueError('give --geneval JSONL, --dpg TXT, or both')
    if args.geneval:
        scores = benchmarks.read_geneval_scores(args.geneval)
        header = ('Sin.Obj.', 'Two.Obj.', 'Counting', 'Colors', 'Pos', 'Color.Attr.', 'Overall')
        print_rows('GenEval (Table 4)', header, args.name, list(scores.values()), PAPER_GENEVAL, '{:.2f}')
    if args.dpg:
        scores = benchmarks.read_dpg_scores(args.dpg)
        header = ('Global', 'Entity', 'Attribute', 'Relation', 'Other', 'Average')
        print_rows('DPG-Bench (Table 5)', header, args.name, list(scores.values()), PAPER_DPG, '{:.1f}')


def print_rows(title: str, header: tuple, name: str, values: list[float], paper: tuple, form: str) -> None:
    print(f'\n| {title} | ' + ' | '.join(header) + ' |')
    print('|---|' + '---|' * len(header))
    for row, numbers in ((name, values), ('*PixNerd-XXL/16, as the paper has it*', paper)):
        print(f'| {row} | ' + ' | '.join(form.format(number) for number in numbers) + ' |')


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        others = dict(table=table, digits=write_digit_prompts, score=score)
        if arguments.command in others:
            others[arguments.command](arguments)
        else:
            from pixnerd_plugin.engine.processes import fail_at_once

            with fail_at_once():
                draw(arguments)
