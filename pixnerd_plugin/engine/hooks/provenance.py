"""Record what a checkpoint depends on, and refuse to resume from it if that has changed."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mmengine
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log

from pixnerd_plugin.engine.plain import plain
from pixnerd_plugin.engine.schedule import check_groups, has_state, reset_schedule, settings
from pixnerd_plugin.registry import HOOKS

KEY = 'depends_on'

# The parts of a config that decide what is learned. The others say where, how fast and how often things are written.
_PARTS = ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader', 'auto_scale_lr', 'randomness')
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
# Previews and validation.
_NOT_LEARNED_FROM = ('model.sampler', 'train_cfg.val_')
# What the optimiser and the schedules have in their states. Resuming restores it whatever the config says, unless it is
# reset; so a change that is not reset would be none.
_SCHEDULE = (
    'config.optim_wrapper.optimizer',
    'config.optim_wrapper.paramwise_cfg',
    'config.param_scheduler',
    'config.train_cfg.max_iters',
    'config.auto_scale_lr',
    'optimiser',
)
_OPTIMISER = 'config.optim_wrapper.optimizer.type'
_PACKAGES = ('pixnerd-plugin', 'torch', 'mmengine', 'numpy', 'Pillow')
_MOST_NAMED = 5


@HOOKS.register_module()
class ProvenanceHook(Hook):
    """Write into every checkpoint what it depends on, and refuse to resume if that has changed.

    ``meta['depends_on']`` holds the part of the config that decides what is learned, the versions, the data's
    fingerprint, the number of processes and the seed. ``tools/train.py --force`` (``resume_anyway`` in the config)
    resumes anyway; the data then continues after the samples already seen. Another learning rate, schedule or length is
    only taken with ``--reset-schedule`` (``reset_schedule``), because the checkpoint holds its own.
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
        if KEY in meta:
            now, then = dependencies(runner), dict(meta[KEY])
            if has_state(runner, checkpoint):
                then['optimiser'] = settings(checkpoint['optimizer'])
                now['optimiser'] = settings(runner.optim_wrapper.state_dict())
            self._compare(runner, differences(then, now))
        else:
            print_log(
                'The checkpoint does not record what it depends on, so nothing is compared.', 'current', logging.WARNING
            )
        if has_state(runner, checkpoint):
            check_groups(checkpoint['optimizer'], runner.optim_wrapper.state_dict())
        if runner.cfg.get('reset_schedule') and has_state(runner, checkpoint):
            reset_schedule(runner, checkpoint)

    def _compare(self, runner: Any, changes: Mapping[str, str]) -> None:
        """Log the changes that the user takes, and raise if there are others."""
        force, reset = (bool(runner.cfg.get(name)) for name in ('resume_anyway', 'reset_schedule'))
        if _OPTIMISER in changes:
            raise ValueError(
                f'{changes[_OPTIMISER]}, which cannot go on from the moments of the other; start from the weights with '
                '--cfg-options load_from=CHECKPOINT in a new --work-dir'
            )
        of_schedule = {key: text for key, text in changes.items() if key.startswith(_SCHEDULE)}
        if any(key.startswith('config.') for key in of_schedule):
            # The optimiser's own values would say the same twice.
            of_schedule = {key: text for key, text in of_schedule.items() if not key.startswith('optimiser')}
        others = {key: text for key, text in changes.items() if not key.startswith(_SCHEDULE)}
        refused = ({} if reset else of_schedule) | ({} if force else others)
        if refused:
            flags = [
                *['take it with --reset-schedule'] * bool(of_schedule and not reset),
                *['resume anyway with --force'] * bool(others and not force),
            ]
            raise ValueError(
                f'this is not the run that wrote the checkpoint: {_named(refused)}. Undo that, or {" and ".join(flags)}'
            )
        if others:
            print_log(f'RESUMED ALTHOUGH SOMETHING CHANGED (--force): {_named(others)}', 'current', logging.WARNING)
        if of_schedule:
            print_log(f'SCHEDULE RESET (--reset-schedule): {_named(of_schedule)}', 'current', logging.WARNING)


def _named(changes: Mapping[str, str]) -> str:
    more = f' and {len(changes) - _MOST_NAMED} more' if len(changes) > _MOST_NAMED else ''
    return '; '.join([*changes.values()][:_MOST_NAMED]) + more


def dependencies(runner: Any) -> dict[str, Any]:
    """What the training of ``runner`` depends on, in plain Python."""
    config = runner.cfg.to_dict()
    dataset = runner.train_dataloader.dataset
    recipe = {part: config.get(part) for part in _PARTS}
    recipe['ema'] = (config.get('default_hooks') or {}).get('ema')
    return dict(
        config={key: value for key, value in _flat(_described(recipe)) if _matters(key)},
        versions={'python': platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        data=dict(fingerprint=getattr(dataset, 'fingerprint', None), samples=len(dataset)),
        processes=get_world_size(),
    )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """A description of each difference, by the name of what differs; parts that an older record lacks do not count."""
    old, new = dict(_flat(then)), dict(_flat(now))
    recorded = {_part(key) for key in old}
    found = {}
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, 'nothing'), new.get(key, 'nothing')
        if before != after and _part(key) in recorded and _matters(key.removeprefix('config.')):
            found[key] = f'{key.removeprefix("config.")} was {before!r} and is {after!r}'
    return found


def _part(key: str) -> str:
    """What was recorded or not as a whole: ``'config.model'``, ``'versions'``."""
    return '.'.join(key.split('.')[: 2 if key.startswith('config.') else 1])


def _matters(name: str) -> bool:
    return name not in _NO_MATTER and not name.startswith(_NOT_LEARNED_FROM)


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
    # So that an entry of a list of parts, as of schedules, is named.
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        yield from _flat(dict(enumerate(value)), prefix)
    else:
        yield prefix, value


def _version(package: str) -> str | None:
    if package == 'mmengine':  # or a fork of another name on PyPI
        return mmengine.__version__
    try:
        return version(package).split('+')[0]
    except PackageNotFoundError:
        return None
