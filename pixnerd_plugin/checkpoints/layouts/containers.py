"""What trainers wrap a network's tensors in: entries of a checkpoint, and what they put into the names."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from pixnerd_plugin.formats.lazy import LazyTensor, Tensors
from pixnerd_plugin.formats.pickle_reader import Inert
from pixnerd_plugin.formats.schema import shown

# Lightning and mmengine; accelerate and others; DeepSpeed.
_WEIGHTS = ('state_dict', 'model_state_dict', 'model', 'module')
_AVERAGES = ('ema', 'ema_model', 'model_ema', 'ema_state_dict', 'state_dict_ema', 'ema_model_state_dict')

# torch.compile and the wrappers of parallel training add them; no network of ours has parts of these names.
_WRAPPERS = ('_orig_mod', 'module')

MAX_NAME = 1000


class State(NamedTuple):
    """The tensors of one entry, by names without wrappers; ``inert`` are those that cannot be read, with the reason."""

    tensors: Tensors
    inert: dict[str, str]
    wrappers: list[str]

    @property
    def names(self) -> Set[str]:
        return self.tensors.keys() | self.inert.keys()


class Container(NamedTuple):
    """What a checkpoint's entries are.

    Args:
        states: tensors by what the entry's name says: ``'ema'``, ``'raw'``, or ``'unlabelled'``.
        swapped: mmengine's second set, of the weights that are trained, while ``state_dict`` has the averages.
        took: the names of the entries, in words.
        others: the names of what else there is.
    """

    states: dict[str, State]
    swapped: State | None
    took: str
    others: list[str]


def unpack(content: Mapping[Any, Any]) -> Container:
    """Find the tensors in what a checkpoint holds.

    Raises:
        ValueError: if an entry of weights is anything else, or one name is there twice, with and without a wrapper.
    """
    for name in _WEIGHTS:
        if isinstance(value := content.get(name), Inert):
            raise ValueError(f'its {name} is {shown(value.name)}, and a table of tensors is due')
    weights = _first(content, _WEIGHTS)
    averages = _first(content, _AVERAGES)
    used = {name for name in (weights, averages) if name}
    others = [name for name in content if type(name) is str and name not in used]
    others = [name for name in others if name.isprintable() and len(name) < MAX_NAME]
    if weights == 'state_dict' and averages == 'ema_state_dict' and 'steps' in content[averages]:
        states = {'unlabelled': clean(content[weights])}
        return Container(states, clean(content[averages]), '', others)
    if not used:
        return Container({'unlabelled': clean(content)}, None, '', [])
    states = {'ema': clean(content[averages])} if averages else {}
    if weights:
        states['raw' if averages else 'unlabelled'] = clean(content[weights])
    took = ' and '.join(f'entry {name!r}' for name in (averages, weights) if name and name != 'state_dict')
    return Container(states, None, took, others)


def _first(content: Mapping[Any, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if type(content.get(name)) is dict), None)


def clean(state: Mapping[Any, Any]) -> State:
    """The tensors of a state dict by their names without wrappers; errors as in :func:`unpack`."""
    tensors: Tensors = {}
    inert: dict[str, str] = {}
    wrappers: dict[str, None] = {}
    for name, value in state.items():
        if type(name) is not str or len(name) > MAX_NAME or not name.isprintable():
            continue
        if not isinstance(value, LazyTensor | Inert):
            continue
        parts = name.split('.')
        wrappers |= dict.fromkeys(part for part in parts if part in _WRAPPERS)
        own = '.'.join(part for part in parts if part not in _WRAPPERS)
        if own in tensors or own in inert:
            raise ValueError(f'{own!r} is there twice, with {" and ".join(wrappers)} in its name and without')
        if isinstance(value, LazyTensor):
            tensors[own] = value
        else:
            inert[own] = value.name
    return State(tensors, inert, list(wrappers))
