"""Find unknown names in a config: mmengine ignores a misspelt one silently, or raises a traceback."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from mmengine import registry as mmengine
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from pixnerd_plugin import registry as ours

# The registry of the parts below each name.
_REGISTRIES: dict[str, Any] = {
    'model': ours.MODELS,
    'feature_extractor': ours.MODELS,
    'model_wrapper_cfg': mmengine.MODEL_WRAPPERS,
    'optim_wrapper': ours.OPTIM_WRAPPERS,
    'optimizer': mmengine.OPTIMIZERS,
    'param_scheduler': mmengine.PARAM_SCHEDULERS,
    'train_cfg': ours.LOOPS,
    'val_cfg': ours.LOOPS,
    'val_evaluator': ours.METRICS,
    'default_hooks': ours.HOOKS,
    'custom_hooks': ours.HOOKS,
    'log_processor': ours.LOG_PROCESSORS,
    'visualizer': mmengine.VISUALIZERS,
    'vis_backends': mmengine.VISBACKENDS,
    'dataset': ours.DATASETS,
    'pipeline': ours.TRANSFORMS,
    'sampler': ours.DATA_SAMPLERS,
    'batch_sampler': ours.DATA_SAMPLERS,
    'collate_fn': mmengine.FUNCTIONS,
}
_TOP_PARTS = set(_REGISTRIES) - {
    'optimizer',
    'vis_backends',
    'dataset',
    'pipeline',
    'sampler',
    'batch_sampler',
    'collate_fn',
}
# Names under which a part holds parts of another registry.
_INNER = {
    'optim_wrapper': ('optimizer',),
    'visualizer': ('vis_backends',),
    'dataset': ('pipeline',),
    'val_evaluator': ('feature_extractor',),
}
# Arguments that whoever builds the part removes first.
_CONSUMED: dict[str, set[str]] = {
    'optim_wrapper': {'optimizer', 'constructor', 'paramwise_cfg'},
    'param_scheduler': {'convert_to_iter_based'},
    'train_cfg': {'by_epoch'},
    'default_hooks': {'priority'},
    'custom_hooks': {'priority'},
}
# Entries besides the Runner's own arguments, read by the tools or mmengine.
_TOP = {
    'image_size',
    'feature_extractor',
    'auto_scale_lr',
    'custom_imports',
    'env_cfg',
    'resume_anyway',
    'own_classes',
    'reset_schedule',
}


def check_options(config: Any, options: Mapping[str, Any]) -> None:
    """Check that ``options`` (dotted names to values) change entries that exist, or that mmengine's Runner knows.

    Raises:
        ValueError: if one does not; the message names it and the nearest known name.
    """
    known = {*inspect.signature(Runner.__init__).parameters, *_TOP} - {'self', 'cfg'}
    for option in options:
        first, *rest = option.split('.')
        if first not in config and first not in known:
            raise ValueError(f'--cfg-options {option}: no config has {first}{_nearest(first, {*config, *known})}')
        value = config.get(first)
        for index, name in enumerate(rest):
            if isinstance(value, (list, tuple)):
                if not name.isdigit() or int(name) >= len(value):
                    at = '.'.join((first, *rest[:index]))
                    raise ValueError(f'--cfg-options {option}: {at} has {len(value)} entries, and no {name}')
                value = value[int(name)]
            elif not isinstance(value, Mapping):
                break  # nothing is there yet, or a value that merging refuses
            elif name not in value and index < len(rest) - 1 and 'type' not in value:
                at = '.'.join((first, *rest[:index]))
                raise ValueError(f'--cfg-options {option}: {at} has no {name}{_nearest(name, value)}')
            else:
                value = value.get(name)


def check_parts(config: Any, options: Mapping[str, Any]) -> None:
    """Check that every part of a config is registered and accepts its arguments.

    Raises:
        ValueError: if one does not; the message names the entry, the file or option it is from, and the nearest name.
    """
    scope = config.get('default_scope') or ours.SCOPE
    # Look up names in the config's scope, as the Runner does.
    with DefaultScope.overwrite_default_scope(scope):
        found = [_problem(path, group, part) for path, group, part in _parts(config)]
    problems = [problem for problem in found if problem is not None]
    for table, known in _tables().items():
        for name in config.get(table) or {}:
            if name not in known:
                problems.append((f'{table}.{name}', f' is not known{_nearest(name, known)}'))
    for entry, what in problems:
        is_option = any(f'{entry}.'.startswith(f'{option}.') or option.startswith(f'{entry}.') for option in options)
        raise ValueError(f'{"--cfg-options " if is_option else f"{config.filename}: "}{entry}{what}')


def _tables() -> dict[str, set[str]]:
    """Entries that are not parts, and the names that each may have."""
    loader = {*inspect.signature(DataLoader.__init__).parameters, 'num_batch_per_epoch'} - {'self'}
    return {
        'randomness': {*inspect.signature(Runner.set_randomness).parameters} - {'self'},
        'auto_scale_lr': {'enable', 'base_batch_size'},
        'train_dataloader': loader,
        'val_dataloader': loader,
        'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    }


def _parts(config: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield every dict with a ``type``: its dotted name, the name in ``_REGISTRIES`` above it, and the dict."""

    def walk(path: str, group: str, value: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        if isinstance(value, Mapping):
            if 'type' in value:
                yield path, group, value
            for name, entry in value.items():
                yield from walk(f'{path}.{name}', name if name in _INNER.get(group, ()) else group, entry)
        elif isinstance(value, (list, tuple)):
            for index, entry in enumerate(value):
                yield from walk(f'{path}.{index}', group, entry)

    for name in [name for name in config if name in _TOP_PARTS]:
        yield from walk(name, name, config[name])
    for loader in ('train_dataloader', 'val_dataloader'):
        for name in ('dataset', 'sampler', 'batch_sampler', 'collate_fn'):
            yield from walk(f'{loader}.{name}', name, (config.get(loader) or {}).get(name))


def _problem(path: str, group: str, part: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first wrong entry of a part, and what is wrong with it."""
    registry, kind = _REGISTRIES[group], part['type']
    built = registry.get(kind) if isinstance(kind, str) else kind
    if built is None:
        names = {*registry.module_dict, *(registry.parent.module_dict if registry.parent else ())}
        # An unknown transform may be one of mmcv's, if mmcv is not installed.
        absent = group == 'pipeline' and find_spec('mmcv') is None
        hint = ' (mmcv is not installed: pip install mmcv-lite)' if absent else ''
        return f'{path}.type', f'={kind} is not known{_nearest(kind, names)}{hint}'
    accepted = accepted_arguments(built)
    if accepted is None:
        return None
    accepted = accepted | (_CONSUMED.get(group, set()) if path.count('.') < 2 else set()) | {'type', '_scope_'}
    for name in part:
        if name not in accepted:
            return f'{path}.{name}', f': {built.__name__} has no argument {name}{_nearest(name, accepted)}'
    return None


def accepted_arguments(part: Any) -> set[str] | None:
    """The names of the arguments that a class or function accepts; None if it may accept any.

    ``**kwargs`` passed on to ``super().__init__`` stand for the base class's arguments.
    """
    functions = [part]
    if inspect.isclass(part):
        functions = [base.__dict__['__init__'] for base in part.__mro__[:-1] if '__init__' in base.__dict__]
    names: set[str] = set()
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
            source = inspect.getsource(function)
        except (TypeError, ValueError, OSError):
            return None  # not written in Python
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        rest = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
        if not rest:
            break
        if rest[0] == 'factory':  # ours, of layers
            names |= {'device', 'dtype'}
            break
        if not re.search(rf'super\(\)\.__init__\((?:[^()]|\([^()]*\))*\*\*{rest[0]}\b', source):
            return None
    return names - {'self'}


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [str(key) for key in known], 1, 0.5)
    return f'; did you mean {close[0]}?' if close else ''
