"""Mutations of valid files by their structure, and what the readers make of them.

Every value of every format, in headers, metadata, settings, indices, entries of checkpoints and records of archives, is
made of a wrong type, out of range, absent, huge, nested, or there twice. As a program, for a long run:

    python -m tests.checkpoints.fuzz --count 20000
"""

import argparse
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save

from pixnerd_plugin.checkpoints.layouts.published import to_published

from .archives import read_records
from .files import prefixed, save_lightning, save_mmengine, tiny_network, tiny_projector
from .limited import FAULT, Limited
from .random_trees import OBJECTS, PLAIN, Tree, doubled, mutate, mutate_pickle


class Corpus:
    """Valid files, and mutations of them into a folder of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        net, text = tiny_network(), tiny_network('text').state_dict()
        self.state, raw = net.state_dict(), tiny_network(seed=1).state_dict()
        sampling = dict(type='AdamsFlowSampler', num_steps=4, order=2, guidance_scale=3.0, guidance_interval=[0.1, 1.0])
        self.metadata = dict(
            version=1,
            variant='custom',
            architecture=net.architecture(),
            weights='ema',
            resolution=32,
            class_names=['a', 'b', 'c'],
            sampling=dict(sampling, timeshift=2.0),
            source=dict(name='x', sha256='0' * 64),
        )
        self.sources = {
            'ours': save(self.state),
            'published': save(prefixed('ema_denoiser.', to_published(text))),
            'scaled': save(self._scaled()),
        }
        self.archives = {}
        self.contents = {}
        for name, path in (
            ('lightning', save_lightning(folder / 'a.ckpt', self.state, raw, tiny_projector())),
            ('mmengine', save_mmengine(folder / 'a.pth', self.state, raw, tiny_projector(), self.metadata)),
        ):
            self.archives[name] = path.read_bytes(), read_records(path)
            self.contents[name] = torch.load(path, weights_only=True)
            path.unlink()
        self.contents['wrapped'] = dict(
            model=prefixed('module._orig_mod.', raw), ema=dict(self.state), step=3, pixnerd=self.metadata
        )
        layer = 'base_model.model.blocks.0.attn.qkv'
        self.adapter = {f'{layer}.lora_A.weight': torch.ones(4, 16), f'{layer}.lora_B.weight': torch.ones(48, 4)}
        other = 'lora_unet_blocks_1_attn_qkv'
        self.adapter |= {f'{other}.lokr_w1': torch.ones(6, 4), f'{other}.lokr_w2': torch.ones(8, 4)}
        self.adapter |= {f'{other}.alpha': torch.tensor(2.0), 'lora_te_x.alpha': torch.tensor(1.0)}
        self.settings = dict(peft_type='LORA', r=4, lora_alpha=8, use_rslora=False, use_dora=False, alpha_pattern={})
        self.qwen = {
            f'model.layers.0.self_attn.{name}.weight': torch.ones(4) for name in ('q_norm', 'k_norm', 'q_proj')
        }

    def _scaled(self) -> dict[str, torch.Tensor]:
        state = dict(self.state)
        for name in [name for name, tensor in state.items() if name.startswith('blocks.') and tensor.ndim == 2]:
            state[name] = state[name].to(torch.float8_e4m3fn)
            state[name.replace('.weight', '.scale_weight')] = torch.tensor(0.5)
        return state

    # Each writes a mutation and returns its path, and the readers that it is for.

    def header(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        content = self.sources[rng.choice(list(self.sources))]
        return self.safetensors('a.safetensors', content, rng), NETWORK

    def safetensors(self, name: str, content: bytes, rng: random.Random) -> Path:
        """A file with its header changed, or the metadata in it, or the length before it."""
        (length,) = struct.unpack('<Q', content[:8])
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        if rng.random() < 0.8:
            header = mutate(header, rng, PLAIN)
        text = doubled(json.dumps(header), rng).encode('utf-8', 'surrogatepass')
        length = rng.choice((0, 1, length, 2**31, 2**63, 2**64 - 1)) if rng.random() < 0.1 else len(text)
        if rng.random() < 0.1:
            data = data[: rng.randrange(len(data) + 1)] + bytes(rng.choice((0, 1, 8, 1000)))
        path = self.folder / name
        path.write_bytes(struct.pack('<Q', length) + text + data)
        return path

    def described(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        """Sound tensors with metadata that is not, in the header or as a tensor."""
        text = doubled(json.dumps(mutate(self.metadata, rng, PLAIN)), rng)
        path = self.folder / 'a.safetensors'
        data = text.encode('utf-8', 'surrogatepass')
        if rng.random() < 0.5:
            path.write_bytes(save(self.state, {'pixnerd': data.decode('utf-8', 'replace')}))
            return path, NETWORK
        tensor = torch.tensor(list(data), dtype=torch.uint8)
        if rng.random() < 0.2:
            tensor = rng.choice((tensor.float(), tensor.reshape(1, -1), torch.tensor(2**40), tensor[:-1], tensor + 1))
        path.write_bytes(save({**self.state, 'pixnerd_metadata': tensor.contiguous()}))
        return path, NETWORK

    def entries(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        """A checkpoint with entries that are something else."""
        content = mutate(self.contents[rng.choice(list(self.contents))], rng, PLAIN + OBJECTS)
        path = self.folder / 'a.pth'
        try:
            torch.save(content, path, pickle_protocol=rng.choice((2, 4)))
        # What this Python cannot pickle, such as a set of what has no hash.
        except Exception:
            path.write_bytes(b'')
        return path, NETWORK

    def pickled(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        """A checkpoint with operations of its pickle changed, and true checksums around."""
        _, records = self.archives[rng.choice(list(self.archives))]
        changed = [(name, mutate_pickle(data, rng) if name.endswith('data.pkl') else data) for name, data in records]
        return self.archive(changed, lambda info: None), NETWORK

    def records(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        """An archive with a record that is absent, renamed, twice there, longer, compressed, or else marked."""
        content, records = self.archives[rng.choice(list(self.archives))]
        if rng.random() < 0.4:
            # A field of the directory, in place.
            raw = bytearray(content)
            marks = [raw.find(mark) for mark in (b'PK\1\2', b'PK\3\4', b'PK\5\6', b'PK\6\6', b'PK\6\7')]
            start = rng.choice([mark for mark in marks if mark >= 0]) + rng.randrange(4, 40)
            code = rng.choice(('<B', '<H', '<L', '<Q'))
            value = struct.pack(
                code, rng.choice((0, 1, 5, 6, 99, 2**16, 2**31, 2**32, 2**63)) % 256 ** struct.calcsize(code)
            )
            raw[start : start + len(value)] = value
            path = self.folder / 'a.ckpt'
            path.write_bytes(raw)
            return path, NETWORK
        records = list(records)
        index = rng.randrange(len(records))
        name, data = records[index]
        action = rng.randrange(6)
        if action == 0:
            del records[index]
        elif action == 1:
            records.append((name, data))
        elif action == 2:
            records[index] = name, data + b'x' if rng.random() < 0.5 else data[:-1]
        elif action == 3:
            records[index] = rng.choice(('../x', '/x', f'{name}/x', 'x/data.pkl', '')), data
        odd = rng.randrange(len(records) + 1)

        def change(info: zipfile.ZipInfo) -> None:
            if action > 3 and info.filename == records[min(odd, len(records) - 1)][0]:
                setattr(info, *rng.choice((('compress_type', 8), ('external_attr', 0o120777 << 16), ('comment', b'x'))))

        return self.archive(records, change), NETWORK

    def archive(self, records: list[tuple[str, bytes]], change: Callable[[zipfile.ZipInfo], None]) -> Path:
        path = self.folder / 'a.ckpt'
        with zipfile.ZipFile(path, 'w') as file:
            for name, data in records:
                info = zipfile.ZipInfo(name)
                change(info)
                file.writestr(info, data)
        return path

    def adapters(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        return self.safetensors('a.safetensors', save(self.adapter), rng), ADAPTER

    def adapter_tensors(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        """Sound files of adapters whose tensors are of odd shapes, values, dtypes and names."""
        tensors = dict(self.adapter)
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(list(tensors))
            shape = rng.choice(((), (0,), (1,), (4,), (4, 16), (16, 4), (0, 16), (1, 1, 1), (48, 16), (48, 1)))
            tensor = torch.full(shape, rng.choice((0.0, 1.0, 1e38, float('nan'), float('inf'))))
            tensor = tensor.to(rng.choice((torch.float32, torch.float16, torch.int64, torch.float8_e4m3fn, torch.bool)))
            roles = ('lora_A.weight', 'alpha', 'diff', 'diff_b', 'dora_scale', 'hada_w1_a', 'lokr_w2_a', 'lokr_t2', 'x')
            if rng.random() < 0.5:
                name = f'{name.split(".lo")[0]}.{rng.choice(roles)}'
            tensors[name] = tensor
        path = self.folder / 'a.safetensors'
        path.write_bytes(save(tensors))
        return path, ADAPTER

    def peft(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        folder = self.folder / 'peft'
        folder.mkdir(exist_ok=True)
        tensors = {name: tensor for name, tensor in self.adapter.items() if name.startswith('base')}
        (folder / 'adapter_model.safetensors').write_bytes(save(tensors))
        write_json(folder / 'adapter_config.json', mutate(self.settings, rng, PLAIN), rng)
        return folder, ADAPTER

    def index(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        folder = self.folder / 'pieces'
        folder.mkdir(exist_ok=True)
        names = sorted(self.state)
        placed = {}
        for number, part in enumerate((names[::2], names[1::2])):
            (folder / f'm-{number}.safetensors').write_bytes(save({name: self.state[name] for name in part}))
            placed |= dict.fromkeys(part, f'm-{number}.safetensors')
        content = mutate(dict(metadata=dict(total_size=1), weight_map=placed), rng, PLAIN)
        write_json(folder / 'model.safetensors.index.json', content, rng)
        return folder / 'model.safetensors.index.json', NETWORK

    def text_encoder(self, rng: random.Random) -> tuple[Path, tuple[str, ...]]:
        folder = self.folder / 'qwen'
        folder.mkdir(exist_ok=True)
        (folder / 'model-1.safetensors').write_bytes(save(self.qwen))
        config = dict(model_type='qwen3', num_hidden_layers=1)
        index = dict(weight_map=dict.fromkeys(self.qwen, 'model-1.safetensors'))
        if rng.random() < 0.5:
            config = mutate(config, rng, PLAIN)
        else:
            index = mutate(index, rng, PLAIN)
        write_json(folder / 'config.json', config, rng)
        write_json(folder / 'model.safetensors.index.json', index, rng)
        return folder, ('text_encoder', 'inspect')


NETWORK = ('backbone', 'backbone', 'backbone', 'raw', 'pipeline', 'inspect', 'convert', 'torch', 'published', 'lora')
ADAPTER = ('lora', 'lora', 'convert_lora', 'inspect', 'backbone')
FORMATS = (
    *('header', 'described', 'entries', 'entries', 'pickled', 'records'),
    *('adapters', 'adapter_tensors', 'peft', 'index', 'text_encoder'),
)


def write_json(path: Path, content: Tree, rng: random.Random) -> None:
    path.write_bytes(doubled(json.dumps(content), rng).encode('utf-8', 'surrogatepass'))


def run(count: int, seed: int, folder: Path, counts: Counter) -> list[str]:
    """Read so many mutations, and add to ``counts`` by ``(format, outcome)``; the faults in words."""
    evil = folder / 'path/evilmod'
    evil.mkdir(parents=True)
    for name in ('__init__', 'registry'):
        (evil / f'{name}.py').write_text(f'open({str(folder / "mark")!r}, "w")\n')
    os.environ['PIXNERD_FUZZ_PATH'] = str(evil.parent)
    work = folder / 'work'
    work.mkdir()
    corpus, rng, process = Corpus(work), random.Random(seed), Limited()
    faults = []
    for number in range(count):
        kind = FORMATS[number % len(FORMATS)]
        path, readers = getattr(corpus, kind)(rng)
        before = sorted(work.rglob('*'))
        reader = rng.choice(readers)
        outcome, text = process.read(reader, path)
        if sorted(work.rglob('*')) != before:
            outcome, text = FAULT, 'it left files behind'
        if (folder / 'mark').exists():
            outcome, text = FAULT, 'it imported a module that it named'
        counts[kind, outcome] += 1
        if outcome == FAULT:
            faults.append(f'{kind} {number} of seed {seed}, {reader}: {text}')
            print(faults[-1], file=sys.stderr, flush=True)
        for left in work.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    process.close()
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=20000)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    counts: Counter = Counter()
    faults = ['interrupted']
    with tempfile.TemporaryDirectory() as name, suppress(KeyboardInterrupt):
        faults = run(arguments.count, arguments.seed, Path(name), counts)
    for kind in dict.fromkeys(FORMATS):
        print(f'{kind:16}', *(f'{outcome} {counts[kind, outcome]:6}' for outcome in ('loaded', 'refused', 'fault')))
    print(*faults, sep='\n')
    sys.exit(bool(faults))


if __name__ == '__main__':
    main()
