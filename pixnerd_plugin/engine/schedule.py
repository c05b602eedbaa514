"""The optimiser's settings and the schedules of a resumed run: those of its checkpoint, or the config's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

# Of a group of parameters. Other entries depend on torch's version.
_SETTINGS = ('lr', 'weight_decay', 'betas', 'momentum')


def has_state(runner: Any, checkpoint: Mapping[str, Any]) -> bool:
    """Whether both the run and the checkpoint have an optimiser."""
    return 'optimizer' in checkpoint and hasattr(getattr(runner, 'optim_wrapper', None), 'state_dict')


def settings(optimiser: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings that an optimiser with this state uses, before schedules change them; those of equal groups once."""
    found: list[dict[str, Any]] = []
    for group in optimiser['param_groups']:
        values = {name: group.get(f'initial_{name}', group[name]) for name in _SETTINGS if name in group}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        if plain not in found:
            found.append(plain)
    return found


def check_groups(saved: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """Refuse the state of an optimiser whose groups of parameters are not those of the one built for this run.

    Raises:
        ValueError: if their numbers differ: with another `paramwise_cfg`, or in a later version.
    """
    then, now = ([len(group['params']) for group in state['param_groups']] for state in (saved, fresh))
    if then != now:
        raise ValueError(
            f"the checkpoint's optimiser has groups of {then} parameters and this run's of {now}, so its moments do "
            'not fit; undo the change of optim_wrapper, or start from the weights with --cfg-options '
            'load_from=CHECKPOINT in a new --work-dir'
        )


def reset_schedule(runner: Any, checkpoint: dict[str, Any]) -> None:
    """Put the settings of the run's config, and its schedule at the iteration reached, into ``checkpoint``.

    From there on everything is as if the schedule had been this one from the beginning; moments and weights are kept.
    The run's optimiser and schedules must be as they were built, its groups those of the checkpoint (`check_groups`).
    """
    schedulers = runner.param_schedulers or []
    groups = schedulers.values() if isinstance(schedulers, Mapping) else [schedulers]
    with warnings.catch_warnings():
        # mmengine takes steps of a schedule without steps of the optimiser for a mistake.
        warnings.simplefilter('ignore', UserWarning)
        for _ in range(checkpoint['meta']['iter']):
            for group in groups:
                for scheduler in group:
                    if not scheduler.by_epoch:
                        scheduler.step()
    saved, fresh = checkpoint['optimizer'], runner.optim_wrapper.state_dict()
    pairs = zip(saved['param_groups'], fresh['param_groups'], strict=True)
    saved['param_groups'] = [now | dict(params=then['params']) for then, now in pairs]
    # mmengine's own group without parameters, from which it logs the rate.
    saved.pop('base_param_settings', None)
    if 'base_param_settings' in fresh:
        saved['base_param_settings'] = fresh['base_param_settings']
    checkpoint.pop('param_schedulers', None)
    if isinstance(schedulers, Mapping):
        checkpoint['param_schedulers'] = {
            name: [scheduler.state_dict() for scheduler in group] for name, group in schedulers.items()
        }
    elif schedulers:
        checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
