"""Field trajectories as safetensors files. Whoever wrote one, nothing in it is trusted.

Tensors: ``noise`` (B, C, H, W), ``tokens.00000``... (branches, B, L, D), ``head.*``. The metadata's entry is a JSON
object: ``head`` and ``sampler`` (a part's ``type`` and arguments), ``token_grid``, ``dim``, ``patch_size``, and
``prediction`` (absent: ``'velocity'``). ``guidance`` (n, B) is there if the guidance takes numbers of whole pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixnerd_plugin.formats.lazy import LazyTensor, Tensors, require_finite
from pixnerd_plugin.formats.parts import build_part
from pixnerd_plugin.formats.plain_file import require_file
from pixnerd_plugin.formats.safetensors_file import open_safetensors, write_safetensors
from pixnerd_plugin.formats.schema import Rule, integer, naming, one_of, sequence
from pixnerd_plugin.formats.text_file import parse_table
from pixnerd_plugin.functional.prediction import PREDICTIONS
from pixnerd_plugin.models.heads.anywhere import require_anywhere

METADATA_KEY = 'pixnerd_field'

# Patch vectors of so many bytes are held in memory; more stay in the file, and are read anew for each chunk of pixels.
HELD_BYTES = 2**30

# Numbers: a batch of 20 pictures of 2048x2048, and the patch vectors of as many of XXL/16 with guidance.
MAX_NOISE, MAX_TOKENS = 2**28, 2**30

# Features of a pixel's coordinates, and of all in a patch: 64 and 16384 in the published networks.
MAX_FEATURES, MAX_TABLE = 2**12, 2**26

_ANY = Rule('a part', lambda value: True)  # build_part checks it
_RULES = dict(
    head=_ANY,
    sampler=_ANY,
    token_grid=sequence(integer(1, 2**16), 2, 2),
    dim=integer(1, 2**16),
    patch_size=integer(1, 2**10),
)
_OPTIONAL = dict(prediction=one_of(*PREDICTIONS))
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class StoredTokens(Sequence[Tensor]):
    """The patch vectors of each evaluation, ``(branches, B, L, D)``, read from their file each time they are asked for.

    Raises:
        ValueError: on reading, if the file has been cut short or replaced meanwhile, or a vector is not finite.
    """

    def __init__(self, path: Path, stored: list[LazyTensor]):
        self.path = path
        self.stored = stored
        self.identity = _identity(path)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if _identity(self.path) != self.identity:
            raise ValueError(f'{self.path} has changed since it was opened; load it again')
        return require_finite(f'{self.path}: its patch vectors of evaluation {index}', self.stored[index].read())


def write_field(path: str | Path, field: Any) -> None:
    """Write a trajectory, head included; whole or not at all."""
    tensors = {'noise': _stored(field.noise)}
    if field.guidance_numbers is not None:
        tensors['guidance'] = _stored(field.guidance_numbers)
    tensors |= {f'head.{name}': _stored(tensor) for name, tensor in field.head.state_dict().items()}
    # Asked for one by one, since those of a loaded field may be too many for the memory.
    shapes = [(s.dtype, tuple(s.shape)) for s in field.tokens]
    tensors |= {_name(i): LazyTensor(*shape, _token(field, i)) for i, shape in enumerate(shapes)}
    description = dict(
        head=field.head.architecture(),
        sampler=field.sampler.config(),
        token_grid=field.token_grid,
        dim=shapes[0][1][-1],
        patch_size=field.head.patch_size,
        prediction=field.prediction,
    )
    write_safetensors(Path(path), tensors, {METADATA_KEY: json.dumps(description)})


def read_field(path: str | Path) -> dict[str, Any]:
    """Read what :func:`write_field` wrote: the arguments of a ``FieldTrajectory``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a field trajectory, or damaged, or asks for anything but our own registered parts.
    """
    path = Path(path)
    require_file(path, 'field trajectory')
    tensors, metadata = open_safetensors(path)
    if METADATA_KEY not in metadata:
        raise ValueError(f'{path}: not a field trajectory; one is written by sampling with record_field=True')
    with naming(f'{path}: a damaged field trajectory, to be sampled and saved again'):
        description = parse_table('its description', metadata[METADATA_KEY], {**_RULES, **_OPTIONAL}, _RULES)
        prediction = description.get('prediction', 'velocity')
        head, sampler = _check(description, prediction, tensors)
    noise = require_finite(f'{path}: its noise', tensors['noise'].read())
    stored_head = {name: tensors[f'head.{name}'] for name in head.state_dict()}
    weights = {name: require_finite(f'{path}: head.{name}', tensor.read()) for name, tensor in stored_head.items()}
    head.load_state_dict(weights, assign=True)
    stored = [tensors[name] for name in sorted(tensors) if name.startswith('tokens.')]
    tokens: Sequence[Tensor] = StoredTokens(path, stored)
    if sum(s.nbytes for s in stored) <= HELD_BYTES:
        tokens = list(tokens)
    grid = tuple(description['token_grid'])
    numbers = None
    if 'guidance' in tensors:
        numbers = require_finite(f'{path}: the numbers of its guidance', tensors['guidance'].read())
    return dict(
        head=head,
        sampler=sampler,
        noise=noise,
        token_grid=grid,
        tokens=tokens,
        prediction=prediction,
        guidance_numbers=numbers,
    )


def _check(description: dict[str, Any], prediction: str, tensors: Tensors) -> tuple[nn.Module, Any]:
    """The head, without its weights, and the sampler, once every tensor is known to fit them; none is read."""
    if 'noise' not in tensors:
        raise ValueError('it has no noise')
    noise = tensors['noise']
    batch, channels = _check_noise(noise, description['token_grid'])
    sampler = build_part(description['sampler'], 'sampler')
    if not sampler.deterministic:
        raise ValueError('its sampler draws noise at every step, and no field can be recorded with it')
    rows, columns = description['token_grid']
    tokens = {name: tensor for name, tensor in tensors.items() if name.startswith('tokens.')}
    _check_tokens(tokens, sampler, prediction, (batch, rows * columns, description['dim']))
    _check_numbers(tensors, sampler, sum(s.shape[0] == 2 for s in tokens.values()) * sampler.guidance.numbers, batch)
    shape = dict(dim=description['dim'], patch_size=description['patch_size'], in_channels=channels)
    head = _build_head(description['head'], shape)
    _check_features(head, (noise.shape[2] // rows) * (noise.shape[3] // columns))
    _check_weights(head, {name: tensor for name, tensor in tensors.items() if name.startswith('head.')})
    if foreign := [
        name for name in tensors if name not in ('noise', 'guidance') and not name.startswith(('tokens.', 'head.'))
    ]:
        raise ValueError(f'it has a tensor {foreign[0][:60]!r}, which no field has')
    return head, sampler


def _check_noise(noise: LazyTensor, grid: list[int]) -> tuple[int, int]:
    shape = noise.shape
    if noise.dtype not in _FLOATS or len(shape) != 4 or not 0 < noise.numel <= MAX_NOISE:
        raise ValueError(f'its noise is {shape} of {noise.dtype}, not (B, C, H, W) of floats, at most {MAX_NOISE}')
    if shape[2] % grid[0] or shape[3] % grid[1]:
        raise ValueError(f'its noise is {shape[2]}x{shape[3]}, which is no multiple of its token_grid {tuple(grid)}')
    return shape[0], shape[1]


class _Counter:
    """A velocity that counts how often it is asked for."""

    def __init__(self, prediction: str):
        self.prediction = prediction
        self.count = 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self.count += 1
        return x


def _check_tokens(tokens: Tensors, sampler: Any, prediction: str, shape: tuple[int, int, int]) -> None:
    asked = _Counter(prediction)
    sampler.integrate(asked, torch.zeros(1))
    if sorted(tokens) != [_name(i) for i in range(asked.count)]:
        raise ValueError(f'it has the patch vectors of {len(tokens)} evaluations, and its sampler makes {asked.count}')
    for s in tokens.values():
        if len(s.shape) != 4 or s.shape[0] > 2 or s.shape[1:] != shape or s.dtype not in _FLOATS:
            wanted = ', '.join(map(str, shape))
            raise ValueError(f'its patch vectors are {s.shape} of {s.dtype}, not (at most 2, {wanted}) of floats')
        if s.numel > MAX_TOKENS:
            raise ValueError(f'its patch vectors are {s.shape}, more than {MAX_TOKENS} numbers an evaluation')


def _check_numbers(tensors: Tensors, sampler: Any, due: int, batch: int) -> None:
    """Check what the guidance took of whole pictures: ``due`` numbers of each."""
    numbers = tensors.get('guidance')
    shape = (0, batch) if numbers is None else numbers.shape
    if shape != (due, batch) or (numbers is not None and numbers.dtype not in _FLOATS):
        kind = type(sampler.guidance).__name__
        raise ValueError(f'its guidance has numbers of shape {shape}, and {kind} took ({due}, {batch}) of floats')


def _build_head(description: Any, shape: dict[str, int]) -> nn.Module:
    try:
        with torch.device('meta'):
            head: nn.Module = build_part(description, 'head', **shape)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f'its head cannot be built ({str(error).splitlines()[-1].strip()[:200]})') from None
    require_anywhere(head)
    return head


def _check_features(head: nn.Module, pixels: int) -> None:
    """Bound the coordinates' features of a patch, which a small file can ask for many of."""
    features = getattr(getattr(head, 'coord_embed', None), 'in_features', 0)
    if features > MAX_FEATURES or features * pixels > MAX_TABLE:
        raise ValueError(f'its head has {features} features of each of the {pixels} pixels of a patch')


def _check_weights(head: nn.Module, weights: Tensors) -> None:
    expected = {f'head.{name}': tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if absent := sorted(expected.keys() - weights.keys()):
        raise ValueError(f'it has no tensor {absent[0]}, which its head needs')
    if foreign := sorted(weights.keys() - expected.keys()):
        raise ValueError(f'it has a tensor {foreign[0][:60]!r}, which its head has not')
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ValueError(f'{name} is {weights[name].shape}, and its head does not fit: it has {shape}')
    dtypes = {tensor.dtype for tensor in weights.values()}
    if len(dtypes) != 1 or not dtypes <= set(_FLOATS):
        raise ValueError(f'its head is of {", ".join(sorted(map(str, dtypes)))}, not of one floating-point type')


def _name(evaluation: int) -> str:
    return f'tokens.{evaluation:05d}'


def _token(field: Any, index: int) -> Callable[[], Tensor]:
    return lambda: field.tokens[index].cpu()


def _stored(tensor: Tensor) -> LazyTensor:
    return LazyTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor.cpu())


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
