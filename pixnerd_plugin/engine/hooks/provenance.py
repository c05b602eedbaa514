"""Record what a checkpoint depends on, and refuse to resume from it if that has changed."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log

from pixnerd_plugin.engine.plain import plain
from pixnerd_plugin.registry import HOOKS

KEY = 'depends_on'

# The parts of a config that decide what is learned. The others say where, how fast and how often things are written.
_PARTS = ('model', 'optim_wrapper', 'param_scheduler', 'train_dataloader', 'auto_scale_lr', 'randomness')
_NO_MATTER = {
    'model.compile',
    'model.backbone.checkpoint',
    'train_dataloader.num_workers',
    'train_dataloader.persistent_workers',
    'train_dataloader.pin_memory',
    'train_dataloader.prefetch_factor',
    'train_dataloader.dataset.data_root',
    'train_dataloader.dataset.index',
}
_PACKAGES = ('pixnerd-plugin', 'torch', 'mmengine', 'numpy', 'Pillow')
_MOST_NAMED = 5


@HOOKS.register_module()
class ProvenanceHook(Hook):
    """Write into every checkpoint what it depends on, and refuse to resume if that has changed.

    ``meta['depends_on']`` holds the part of the config that decides what is learned, the versions, the data's
    fingerprint, the number of processes and the seed. ``tools/train.py --force`` (``resume_anyway`` in the config)
    resumes anyway; the data then continues after the samples already seen.
    """

    priority = 'VERY_HIGH'

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint['meta']
        meta[KEY] = dependencies(runner)
        if hasattr(runner.train_loop, 'visits_after'):
            meta['visits'] = runner.train_loop.visits_after(meta['iter'])

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        meta = checkpoint['meta']
        if 'visits' in meta and hasattr(runner.train_loop, 'resume_visits'):
            runner.train_loop.resume_visits(meta['iter'], meta['visits'])
        if KEY not in meta:
            print_log(
                'The checkpoint does not record what it depends on, so nothing is compared.', 'current', logging.WARNING
            )
            return
        changes = list(differences(meta[KEY], dependencies(runner)))
        if not changes:
            return
        more = f' and {len(changes) - _MOST_NAMED} more' if len(changes) > _MOST_NAMED else ''
        named = '; '.join(changes[:_MOST_NAMED]) + more
        if not runner.cfg.get('resume_anyway'):
            raise ValueError(
                f'this is not the run that wrote the checkpoint: {named}. Undo that, or resume anyway with --force'
            )
        print_log(f'RESUMED ALTHOUGH SOMETHING CHANGED (--force): {named}', 'current', logging.WARNING)


def dependencies(runner: Any) -> dict[str, Any]:
    """What the training of ``runner`` depends on, in plain Python."""
    config = runner.cfg.to_dict()
    dataset = runner.train_dataloader.dataset
    recipe = {part: config.get(part) for part in _PARTS}
    recipe['ema'] = (config.get('default_hooks') or {}).get('ema')
    return dict(
        config={key: value for key, value in _flat(_described(recipe)) if key not in _NO_MATTER},
        versions={'python': platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        data=dict(fingerprint=getattr(dataset, 'fingerprint', None), samples=len(dataset)),
        processes=get_world_size(),
    )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield a description of each difference."""
    old, new = dict(_flat(then)), dict(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, 'nothing'), new.get(key, 'nothing')
        if before != after:
            yield f'{key.removeprefix("config.")} was {before!r} and is {after!r}'


def _described(value: Any) -> Any:
    """Plain values; only the last name of a path, because folders move, and only the type of an object."""
    if isinstance(value, Mapping):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if isinstance(value, str):
        return value.replace('\\', '/').rstrip('/').rsplit('/', 1)[-1]
    try:
        return plain(value)
    except TypeError:
        return type(value).__qualname__


def _flat(value: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f'{prefix}.{key}' if prefix else str(key))
    else:
        yield prefix, value


def _version(package: str) -> str | None:
    try:
        return version(package).split('+')[0]
    except PackageNotFoundError:
        return None
