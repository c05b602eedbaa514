"""A process in which files are read within limits, and what came of each: a load, one line, or a fault.

As a program it takes lines of JSON, ``[reader, path]``, and answers each by a line ``[outcome, text]``.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

# What any file may cost: CPU seconds, and bytes beyond 1.2 times its size.
SECONDS = 10
MEMORY = 200 * 2**20

LOADED, REFUSED, FAULT = 'loaded', 'refused', 'fault'


class Limited:
    """The process; it is started again when a file has killed it."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def read(self, reader: str, path: Path) -> tuple[str, str]:
        """What ``reader`` made of a file: an outcome, and its line or traceback."""
        if self.process is None or self.process.poll() is not None:
            root = Path(__file__).parents[2]
            packages = os.pathsep.join((str(root), os.environ.get('PIXNERD_FUZZ_PATH', '')))
            environment = dict(os.environ, PYTHONPATH=packages, OMP_NUM_THREADS='1', TQDM_DISABLE='1')
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'tests.checkpoints.limited'],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=root,
                env=environment,
            )
        print(json.dumps([reader, str(path)]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            return FAULT, f'the process died with {self.process.wait()}'
        outcome, text = json.loads(answer)
        return outcome, text

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def shapes(state: dict) -> dict:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def readers() -> dict:
    import torch

    from pixnerd_plugin import load_backbone, load_pipeline
    from pixnerd_plugin.checkpoints.convert import convert
    from pixnerd_plugin.checkpoints.inspect import report
    from pixnerd_plugin.checkpoints.lora import apply_lora, convert_lora
    from pixnerd_plugin.checkpoints.metadata import parse_metadata_tensor
    from pixnerd_plugin.checkpoints.text_encoder import convert_text_encoder
    from pixnerd_plugin.formats.lazy import is_finite
    from pixnerd_plugin.models.frozen import find_pretrained

    from .files import tiny_network

    # An output norm is no must.
    optional = {'head.norm.weight': (4,)}
    right = [{**shapes(tiny_network(kind).state_dict()), **optional} for kind in ('class', 'text')]

    def backbone(path: Path) -> None:
        state = load_backbone(path).state_dict()
        assert all(map(is_finite, state.values()))
        assert 'PIXNERD_FUZZ_PATH' not in os.environ or {**shapes(state), **optional} in right, 'another network'

    def written(function, path: Path, suffix: str, *arguments) -> None:
        target = path.with_name(f'out{suffix}')
        try:
            function(path, target, *arguments)
            assert target.exists()
        finally:
            target.unlink(missing_ok=True)

    def greedy(path: Path) -> int:
        return len(bytes(2 * MEMORY))

    return dict(
        greedy=greedy,
        broken=lambda path: {}[str(path)],
        backbone=backbone,
        raw=lambda path: load_backbone(path, 'raw'),
        pipeline=load_pipeline,
        inspect=lambda path: json.dumps(report(path)),
        convert=lambda path: written(convert, path, '.safetensors'),
        torch=lambda path: written(convert, path, '.pth'),
        published=lambda path: written(convert, path, '.ckpt'),
        lora=lambda path: apply_lora(tiny_network(), path, 0.5),
        convert_lora=lambda path: written(convert_lora, path, '.safetensors'),
        text_encoder=lambda path: written(convert_text_encoder, path, '.safetensors'),
        pretrained=lambda path: find_pretrained(path, ('qwen3',), 'Qwen/Qwen3-1.7B'),
        metadata=lambda path: parse_metadata_tensor(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)),
    )


class Slow(BaseException):
    """Raised where the time is over; no reader catches it."""


def limited(function, path: Path, size: int) -> tuple[str, str]:
    def stop(signum, frame):
        raise Slow

    pages = int(Path('/proc/self/statm').read_text().split()[0])
    allowed = pages * resource.getpagesize() + int(1.2 * size) + MEMORY
    signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        function(path)
        return LOADED, ''
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        known = '\n' not in text and len(text) < 1500 and str(path.parent) in text and text.isprintable()
        return (REFUSED if known else FAULT), text[:2000]
    except Slow:
        return FAULT, f'more than {SECONDS} s'
    except BaseException as error:
        return FAULT, f'{type(error).__name__}: {str(error)[:500]}'
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main() -> None:
    known = readers()
    # The modules that a first call imports are not the file's doing.
    import torch

    from .files import tiny_network

    torch.set_num_threads(1)
    tiny_network()
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        reader, name = json.loads(line)
        path = Path(name)
        files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
        outcome = limited(known[reader], path, sum(file.stat().st_size for file in files))
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == '__main__':
    main()
