#!/usr/bin/env python
"""Count the memory of a training step of a config, without a GPU, weights or data.

  python tools/analysis_tools/training_memory.py mm_configs/pixnerd_xl16_meanflow.py

Two accumulated batches and a step of the optimiser run on tensors without values, and the bytes of those that are alive
are added up: weights, gradients, moments, EMA, the network that is distilled, activations, copies under autocast. What
an allocator keeps for later, and what the GPU's libraries need, comes on top: about 1 GiB. A teacher for representation
alignment is left out.
"""

import argparse
import weakref

GIB = 2**30


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='as for tools/train.py')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from pixnerd_plugin.engine.config import load_config

    config = load_config(args.config, args.cfg_options)
    batch, side = config.train_dataloader.batch_size, config.image_size
    print(f'{args.config}: batches of {batch} pictures of {side}x{side}')
    for name, size in count_step(config).items():
        print(f'{name:28}{size / GIB:7.2f} GiB')


def count_step(config) -> dict[str, int]:
    """Bytes of each part of a training step, and of all at their peak."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), alive() as count:
        return take_step(config, count)


def alive():
    """A mode that counts the bytes of the tensors that are made in it: ``now``, and ``peak`` since it was last set."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Alive(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.now = self.peak = 0
            self.known: set[int] = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.add(tensor.untyped_storage())
            return result

        def add(self, storage) -> None:
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.remove, key, size).atexit = False

        def remove(self, key: int, size: int) -> None:
            self.known.discard(key)
            self.now -= size

    return Alive()


def take_step(config, count) -> dict[str, int]:
    import torch
    from mmengine.registry import OPTIMIZERS

    from pixnerd_plugin.registry import MODELS, build

    settings, wrapper, batch = config.model.to_dict(), config.optim_wrapper, config.train_dataloader.batch_size
    sizes, before = {}, 0

    def note(name: str) -> None:
        nonlocal before
        sizes[name], before = count.now - before, count.now

    net = build(MODELS, settings['backbone'])
    note('weights')
    ema = config.default_hooks.get('ema')
    average = [p.detach().clone() for p in net.parameters()] if ema and ema.get('device') != 'cpu' else []
    note('average of the weights')
    loss, source = settings['loss'], settings['loss'].get('velocity_teacher')
    loss['teacher'] = None
    if loss.get('max_density', 1) > 1 or loss.get('overlap'):
        raise ValueError(
            'the loss draws the density of the pixels at every step, and here nothing can be drawn; add --cfg-options '
            'model.loss.max_density=1 model.loss.overlap=0'
        )
    if source is not None:
        dtype = getattr(torch, source.get('dtype') or 'float32')
        plain = {**settings['backbone'], 'step_end': False, 'dtype': dtype}
        loss['velocity_teacher'] = build(MODELS, plain).requires_grad_(False)
        note('network that is distilled')
    loss = build(MODELS, loss)
    loss.projector.requires_grad_(False)
    optimizer = OPTIMIZERS.build({**wrapper.optimizer, 'params': list(net.parameters())})

    images = torch.zeros(batch, net.in_channels, config.image_size, config.image_size)
    # Shares of the classes, because ids would be checked, and these have no values.
    shape = (net.num_classes,) if net.text_dim is None else (net.text_length, net.text_dim)
    cond, null = torch.zeros(batch, *shape), torch.zeros(1, *shape)
    times = dict(t=torch.linspace(0, 0.9, batch))
    if hasattr(loss, 'velocity_teacher'):
        times['r'] = torch.ones(batch)  # all pictures have a path: the most that a batch can need
    before = count.now
    for _ in range(2):
        count.peak = count.now
        with torch.autocast('cpu', torch.bfloat16, enabled=wrapper.type == 'Bf16OptimWrapper'):
            terms = loss(net, images, cond, null, **times)
        sum(value for name, value in terms.items() if name.startswith('loss')).backward()
        del terms
    most = count.peak
    note('gradients')
    count.peak = count.now
    optimizer.step()
    note(f'{wrapper.optimizer.type}, state')
    # In later steps the passes run beside the optimiser's state, which the first had not.
    passes = most - sum(sizes.values()) + sizes[f'{wrapper.optimizer.type}, state']
    sizes['passes, at their most'] = passes
    sizes['peak'] = max(count.peak, most + sizes[f'{wrapper.optimizer.type}, state'])
    del average
    return sizes


if __name__ == '__main__':
    arguments = parse_args()
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)
