"""ComfyUI's scaled float8 weights: small numbers and a scale beside them, back to one tensor each."""

from __future__ import annotations

import torch
from torch import Tensor

from pixnerd_plugin.formats.lazy import LazyTensor, Tensors, require_finite
from pixnerd_plugin.formats.plain_file import parse_json
from pixnerd_plugin.formats.schema import shown

# The older names, and those of ComfyUI's quantised layers.
_SCALES = ('scale_weight', 'weight_scale')
# How to compute with them, which does not change what they are.
_UNUSED = ('scale_input', 'input_scale')
_MARK = 'scaled_fp8'
_FORMAT = 'comfy_quant'
_FORMATS = ('float8_e4m3fn', 'float8_e5m2')


def unscale(tensors: Tensors) -> Tensors:
    """The tensors of a network, each scaled one as the bfloat16 tensor that it stands for; others as they are.

    Raises:
        ValueError: if a scale has no float8 weight, or is of another kind than one number, or one a row.
    """
    scales = {name.rpartition('.')[0]: tensor for name, tensor in tensors.items() if name.split('.')[-1] in _SCALES}
    formats = [name for name in tensors if name.split('.')[-1] == _FORMAT]
    if not scales and not formats:
        return tensors
    for name in formats:
        _check_format(name, tensors[name])
    extra = (*_SCALES, *_UNUSED, _MARK, _FORMAT)
    plain = {name: tensor for name, tensor in tensors.items() if name.split('.')[-1] not in extra}
    for layer, scale in scales.items():
        name = f'{layer}.weight'
        weight = plain.get(name)
        if weight is None or weight.dtype.itemsize != 1 or not weight.dtype.is_floating_point or not weight.shape:
            raise ValueError(f'{layer} has a scale, and no float8 weight')
        if scale.numel != 1 and scale.shape not in (weight.shape[:1], (*weight.shape[:1], 1)):
            raise ValueError(f'the scale of {layer} is {scale.shape}, and its weight {weight.shape}')
        if not scale.dtype.is_floating_point:
            raise ValueError(f'the scale of {layer} is of {scale.dtype}')
        plain[name] = _scaled(name, weight, scale)
    return plain


def _scaled(name: str, weight: LazyTensor, scale: LazyTensor) -> LazyTensor:
    def read() -> Tensor:
        factors = require_finite(f'the scale of {name}', scale.read().float()).reshape(-1)
        rows = weight.read()
        result = torch.empty(weight.shape, dtype=torch.bfloat16)
        # Row by row some at a time: in float32 all at once would take twice the memory of the result.
        step = max(1, 2**22 // max(1, weight.numel // max(1, len(rows))))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            own = factors if len(factors) == 1 else factors[part].reshape(-1, *[1] * (rows.ndim - 1))
            result[part] = rows[part].float() * own
        return result

    return LazyTensor(torch.bfloat16, weight.shape, read)


def _check_format(name: str, tensor: LazyTensor) -> None:
    if tensor.dtype != torch.uint8 or len(tensor.shape) != 1 or tensor.numel > 10**4:
        raise ValueError(f'{name} is {tensor.shape} of {tensor.dtype}, and a short text is due')
    content = parse_json(bytes(tensor.read().tolist()))
    found = content.get('format') if type(content) is dict else content
    if found not in _FORMATS:
        raise ValueError(f'{name} is quantised as {shown(found)}; {" and ".join(_FORMATS)} are read')
