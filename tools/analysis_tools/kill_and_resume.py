#!/usr/bin/env python
"""Show that training killed at random moments and resumed is the training that was never stopped, to the last bit.

Trains CONFIG once in peace and once under fire: every process is killed (SIGKILL) at a random moment after training
has begun, in half of the cases only one of them, and started again with --resume, as often as asked. Then the two last
checkpoints (weights, averages, optimiser, schedules, history of the logs), the best ones (best.pth) and the two logs
are compared. Repeated for each number of processes, the batch being divided among them; a figure shows all curves. The
same command goes on where it was interrupted (Ctrl-C or SIGTERM).

  python tools/analysis_tools/kill_and_resume.py mm_configs/pixnerd_digits.py --processes 1 2 --kills 20 \\
      --iterations 150 --save-every 5 --batch-size 16

Works on Linux, where it finds the processes in /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PORT = 29571
KILLS = 'kills.json'
"""In the folder of a killed run: the options of this tool, and the iteration reached at each kill."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, such as mm_configs/pixnerd_digits.py')
    parser.add_argument('--processes', type=int, nargs='+', default=[2], help='numbers of processes to try (2)')
    parser.add_argument('--kills', type=int, default=20, help='how often to kill each run (20)')
    parser.add_argument('--iterations', type=int, default=150, help='length of the training (150)')
    parser.add_argument('--save-every', type=int, default=5, help='iterations between checkpoints (5)')
    parser.add_argument('--batch-size', type=int, default=16, help='pictures an iteration, over all processes (16)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments (0)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/kill_and_resume'), help='a new folder')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='as for tools/train.py')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs, as Ctrl-C does
    runs, same = {}, True
    for processes in args.processes:
        whole, parts = (args.work_dir / f'{processes}_{kind}' for kind in ('whole', 'killed'))
        if parts.exists() and not (parts / KILLS).exists():
            raise ValueError(f'{parts} exists and is not of this tool; give another --work-dir, or remove it')
        started = time.perf_counter()
        finish(start(args, processes, whole), whole)  # one that is there already is not trained again
        print(f'{processes} processes, in peace: {time.perf_counter() - started:.0f} s', flush=True)
        starts = run_under_fire(args, processes, whole, parts)
        found = differences(whole, parts, args.iterations)
        same = same and not found
        print(f'{processes} processes, killed {args.kills} times: {found or "the same to the last bit"}', flush=True)
        runs[f'{processes} in peace'] = (whole, [])
        runs[f'{processes} killed {args.kills} times'] = (parts, starts)
    figure = args.work_dir / 'kill_and_resume.png'
    draw(runs, figure)
    print(f'figure: {figure}')
    if not same:
        raise ValueError('a resumed run differs from the uninterrupted one')


def run_under_fire(args, processes: int, whole: Path, parts: Path) -> list[int]:
    """Train, killed ``args.kills`` times; return the iterations at which training began again."""
    from pixnerd_plugin.engine.logs import read_scalars

    steps = read_scalars(whole)
    pace = sum(entry['time'] for entry in steps.values()) / len(steps)
    settings = {key: str(value) for key, value in vars(args).items() if key not in ('processes', 'work_dir')}
    there = json.loads((parts / KILLS).read_text()) if parts.exists() else dict(settings=settings, starts=[])
    if there['settings'] != settings:
        raise ValueError(f'{parts} was begun with other options; give another --work-dir, or remove it')
    starts = there['starts']
    for kill in range(len(starts), args.kills):
        parts.mkdir(parents=True, exist_ok=True)
        (parts / KILLS).write_text(json.dumps(dict(settings=settings, starts=starts)))
        moments = random.Random(f'{args.seed} {processes} {kill}')
        before = newest_log(parts)
        # So many iterations after the start, and then at any moment of the next one, its checkpoint included; spread
        # over the run, and before its end.
        left = args.iterations - (max(read_scalars(parts), default=0) if before else 0)
        due = max(1, min(moments.randint(1, max(1, 2 * args.iterations // args.kills)), left - 2))
        process = start(args, processes, parts)
        with killed_on_error(process):
            while lines_after(parts, before) < due:
                if process.poll() is not None:
                    raise ValueError(f'a start failed or training was over after {kill} kills; see {parts}/output.txt')
                time.sleep(0.01)
            time.sleep(moments.uniform(0, pace))
        alive = descendants(process.pid)
        workers = [
            pid for pid in alive if b'--launcher' in command_line(pid) and b'torch.distributed' not in command_line(pid)
        ]
        one = processes > 1 and workers and moments.random() < 0.5
        victims = [moments.choice(workers)] if one else [process.pid, *alive]
        kill_all(victims)
        process.wait()
        wait_for_end(alive)
        time.sleep(1)  # mmengine names the log of a start by the second
        steps = read_scalars(parts)
        starts.append(max(steps, default=0))
        print(f'kill {kill + 1}: {"one process" if one else "all processes"}, logged up to {starts[-1]}', flush=True)
        if starts[-1] >= args.iterations:
            raise ValueError(f'training was over after {kill + 1} kills; give more --iterations')
    (parts / KILLS).write_text(json.dumps(dict(settings=settings, starts=starts)))
    finish(start(args, processes, parts), parts)
    return starts


def start(args, processes: int, work_dir: Path) -> subprocess.Popen:
    """Start or resume training in ``work_dir``."""
    options = [
        '--work-dir', str(work_dir), '--resume', '--cfg-options',
        f'train_cfg.max_iters={args.iterations}',
        f'default_hooks.checkpoint.interval={args.save_every}',
        'default_hooks.logger.interval=1',
        f'train_dataloader.batch_size={args.batch_size // processes}',
        *args.cfg_options,
    ]  # fmt: skip
    if processes > 1:
        command = [str(ROOT / 'tools/dist_train.sh'), args.config, str(processes), *options]
    else:
        command = [sys.executable, str(ROOT / 'tools/train.py'), args.config, '--launcher', 'none', *options]
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    environment = os.environ | dict(PYTHON=sys.executable, PYTHONPATH=path, PORT=str(PORT))
    environment.setdefault('OMP_NUM_THREADS', '1')
    work_dir.mkdir(parents=True, exist_ok=True)
    with open(work_dir / 'output.txt', 'ab') as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def finish(process: subprocess.Popen, work_dir: Path) -> None:
    with killed_on_error(process):
        process.wait()
    if process.returncode != 0:
        raise ValueError(f'training ended with exit code {process.returncode}; see {work_dir}/output.txt')


@contextlib.contextmanager
def killed_on_error(process: subprocess.Popen) -> Iterator[None]:
    """End a training with this tool."""
    try:
        yield
    except BaseException:
        kill_all([process.pid, *descendants(process.pid)])
        raise


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def newest_log(work_dir: Path) -> Path | None:
    """The log of the latest start."""
    return max(work_dir.glob('*/vis_data/scalars.json'), default=None)


def lines_after(work_dir: Path, before: Path | None) -> int:
    """Lines of the log of a start after the one that logged to ``before``, which the new start may have set aside."""
    newest = newest_log(work_dir)
    return 0 if newest is None or (before and newest <= before) else newest.read_bytes().count(b'\n')


def descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f'/proc/{pid}/task').glob('*/children'):
        for child in children.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def command_line(pid: int) -> bytes:
    try:
        return Path(f'/proc/{pid}/cmdline').read_bytes()
    except OSError:
        return b''


def wait_for_end(pids: list[int]) -> None:
    while any(command_line(pid) for pid in pids):
        time.sleep(0.05)


def differences(whole: Path, parts: Path, iterations: int) -> str:
    """Name what differs between two runs' last checkpoints and logs; empty if nothing does."""
    import torch

    from pixnerd_plugin.engine.logs import is_measured, read_scalars

    last = [torch.load(folder / f'iter_{iterations}.pth', weights_only=True) for folder in (whole, parts)]
    for checkpoint in last:
        history = checkpoint['message_hub']['log_history']
        checkpoint['log_history'] = {key: value for key, value in history.items() if not is_measured(key)}
    keys = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'log_history')
    names = [key for key in keys if not equal(last[0][key], last[1][key])]
    best = [folder / 'best.pth' for folder in (whole, parts)]
    if any(path.exists() for path in best):
        states = [torch.load(path, weights_only=True)['state_dict'] if path.exists() else None for path in best]
        names += [] if equal(*states) else ['best.pth']
    logs = [
        {step: {key: value for key, value in entry.items() if not is_measured(key)} for step, entry in steps.items()}
        for steps in (read_scalars(whole, strict=True), read_scalars(parts, strict=True))
    ]
    if logs[0] != logs[1] or list(logs[0]) != list(range(1, iterations + 1)):
        names.append('logs')
    return f'different: {", ".join(names)}' if names else ''


def equal(a, b) -> bool:
    """Whether two nested values are the same to the last bit."""
    import torch

    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def draw(runs: dict[str, tuple[Path, list[int]]], path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    from pixnerd_plugin.engine.logs import read_scalars
    from pixnerd_plugin.formats.atomic import atomic_path

    figure, axes = plt.subplots(figsize=(7, 3.6), layout='constrained')
    for index, (name, (folder, starts)) in enumerate(runs.items()):
        steps = read_scalars(folder)
        losses = [entry['loss'] for entry in steps.values()]
        # A killed run lies exactly on the one in peace, which is drawn wide to be seen below it.
        style = dict(lw=1, color='black', ls='--') if starts else dict(lw=5, alpha=0.5, color=f'C{index // 2}')
        axes.plot(list(steps), losses, label=name, **style)
        axes.plot(starts, [steps[s]['loss'] if s in steps else None for s in starts], 'x', color=f'C{3 + index // 2}')
    axes.set(xlabel='iteration', ylabel='loss, mean of the last 100', title='In peace, and killed at the crosses')
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


if __name__ == '__main__':
    arguments = parse_args()
    sys.path.insert(0, str(ROOT))
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)
