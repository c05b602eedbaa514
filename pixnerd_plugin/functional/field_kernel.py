"""The neural field as one Triton kernel forward and one backward: a program a patch, activations kept on the chip.

It reads the raw output of the generator and gives what ``NeuralFieldHead`` gives with its own operations, which stay
the reference. Products take their operands in the dtype of the generated weights; sums, norms and the residual are in
float32. No second derivative, and none in forward mode.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Pixels of a patch that a program holds at once, and its warps: the most that leaves all values in registers, as ptxas
# reports for bfloat16 fields of width 64 on sm_90.
FORWARD = dict(PIXELS=64, num_warps=4)
BACKWARD = dict(PIXELS=32, num_warps=8)


class Field(NamedTuple):
    """The parts of a field that all patches share."""

    embed: Tensor
    """``(D_x, C)``, the input layer of the noisy values."""
    norms: Tensor
    """``(depth, D_x)``, the weights of the blocks' norms."""
    norm: Tensor | None
    """``(D_x,)``, the weight of the norm before the last layer, if there is one."""
    proj: Tensor
    """``(C, D_x)``, the last layer."""
    bias: Tensor
    """``(C,)``, its bias."""


def evaluate(pixels: Tensor, table: Tensor, generated: Tensor, field: Field, unit_w2: bool, eps: float) -> Tensor:
    """Velocity ``(N, M, C)`` of pixels, each patch with its own weights, in the dtype of ``generated``.

    Args:
        pixels: noisy values ``(N, M, C)``, any number ``M`` of pixels in a patch.
        table: ``(M, D_x)``, what the coordinates add to the input layer.
        generated: ``(N, depth * 2 * r D_x * D_x)``, ``W1`` and ``W2`` of each block, as the generator gives them.
        field: what all patches share.
        unit_w2: whether the columns of ``W2`` are scaled to unit norm too; those of ``W1`` always are.
        eps: of the norms.
    """
    tensors = tuple(None if part is None else part.contiguous() for part in (pixels, table, generated, *field))
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors):
        return _Field.apply(*tensors, unit_w2, eps)
    return _forward(tensors, unit_w2, eps, keep=False)[0]


@triton.jit
def _unit_columns(w, scale: tl.constexpr, smallest):
    """``w`` with columns of unit norm, and their norms before."""
    norms = tl.maximum(tl.sqrt(tl.sum(w * w, axis=0)), smallest)
    return (w / norms[None, :] if scale else w), norms


@triton.jit
def _of_unit_columns(gradient, unit, norms, scale: tl.constexpr):
    """The gradient of ``w``, from that of its unit columns."""
    along = tl.sum(gradient * unit, axis=0)
    return (gradient - unit * along[None, :]) / norms[None, :] if scale else gradient


@triton.jit
def _reciprocal_rms(h, width: tl.constexpr, eps):
    return 1 / tl.sqrt(tl.sum(h * h, axis=1) / width + eps)


@triton.jit
def _of_norm(gradient, h, weight, scale, width: tl.constexpr):
    """The gradient of ``h`` in ``h * scale * weight``, ``scale`` being its reciprocal root mean square."""
    of_scaled = gradient * weight[None, :]
    along = tl.sum(of_scaled * h, axis=1) * scale * scale * scale / width
    return of_scaled * scale[:, None] - h * along[:, None]


@triton.jit
def _forward_kernel(
    pixels, table, generated, embed, norms, norm, proj, bias, out, inputs, count, eps, smallest,
    C: tl.constexpr, D: tl.constexpr, F: tl.constexpr, D2: tl.constexpr, F2: tl.constexpr, DEPTH: tl.constexpr,
    UNIT_W2: tl.constexpr, NORM: tl.constexpr, KEEP: tl.constexpr, PIXELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0).to(tl.int64)
    d, f = tl.arange(0, D2), tl.arange(0, F2)
    in_d, in_f = d < D, f < F
    dtype = generated.dtype.element_ty
    for start in range(0, count, PIXELS):
        m = start + tl.arange(0, PIXELS)
        in_m = m < count
        in_md = in_m[:, None] & in_d[None, :]
        # Embed.
        h = tl.load(table + m[:, None] * D + d[None, :], in_md, 0).to(tl.float32)
        for c in tl.static_range(C):
            value = tl.load(pixels + (patch * count + m) * C + c, in_m, 0).to(tl.float32)
            h += value[:, None] * tl.load(embed + d * C + c, in_d, 0).to(tl.float32)[None, :]
        # Blocks.
        for block in range(DEPTH):
            if KEEP:
                rows = (patch * (DEPTH + 1) + block) * count + m
                tl.store(inputs + rows[:, None] * D + d[None, :], h.to(dtype), in_md)
            first = generated + (patch * DEPTH + block) * 2 * D * F
            w1 = tl.load(first + d[:, None] * F + f[None, :], in_d[:, None] & in_f[None, :], 0).to(tl.float32)
            w1, _ = _unit_columns(w1, True, smallest)
            w2 = tl.load(first + D * F + f[:, None] * D + d[None, :], in_f[:, None] & in_d[None, :], 0).to(tl.float32)
            w2, _ = _unit_columns(w2, UNIT_W2, smallest)
            weight = tl.load(norms + block * D + d, in_d, 0).to(tl.float32)
            n = h * _reciprocal_rms(h, D, eps)[:, None] * weight[None, :]
            a = tl.dot(n.to(dtype), w1.to(dtype), input_precision=PRECISION)
            h += tl.dot((a * tl.sigmoid(a)).to(dtype), w2.to(dtype), input_precision=PRECISION)
        # Output.
        if KEEP:
            rows = (patch * (DEPTH + 1) + DEPTH) * count + m
            tl.store(inputs + rows[:, None] * D + d[None, :], h.to(dtype), in_md)
        if NORM:
            h *= _reciprocal_rms(h, D, eps)[:, None] * tl.load(norm + d, in_d, 0).to(tl.float32)[None, :]
        for c in tl.static_range(C):
            v = tl.sum(h * tl.load(proj + c * D + d, in_d, 0).to(tl.float32)[None, :], axis=1)
            v += tl.load(bias + c).to(tl.float32)
            tl.store(out + (patch * count + m) * C + c, v.to(dtype), in_m)


@triton.jit
def _backward_kernel(
    of_out, inputs, generated, norms, norm, proj, of_h, of_generated, of_shared, count, eps, smallest,
    C: tl.constexpr, D: tl.constexpr, F: tl.constexpr, D2: tl.constexpr, F2: tl.constexpr, DEPTH: tl.constexpr,
    UNIT_W2: tl.constexpr, NORM: tl.constexpr, PIXELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0).to(tl.int64)
    d, f = tl.arange(0, D2), tl.arange(0, F2)
    in_d, in_f = d < D, f < F
    dtype = generated.dtype.element_ty
    # A patch's share of the gradients of norms (depth, D_x), norm (D_x,), proj (C, D_x) and bias (C,).
    shared = of_shared + patch * ((DEPTH + 1 + C) * D + C)
    # Output.
    last = tl.zeros((D2,), tl.float32)
    if NORM:
        last += tl.load(norm + d, in_d, 0).to(tl.float32)
    of_norm = tl.zeros((D2,), tl.float32)
    for start in range(0, count, PIXELS):
        m = start + tl.arange(0, PIXELS)
        in_m = m < count
        in_md = in_m[:, None] & in_d[None, :]
        rows = (patch * (DEPTH + 1) + DEPTH) * count + m
        h = tl.load(inputs + rows[:, None] * D + d[None, :], in_md, 0).to(tl.float32)
        gradient = tl.zeros((PIXELS, D2), tl.float32)
        for c in tl.static_range(C):
            of_v = tl.load(of_out + (patch * count + m) * C + c, in_m, 0).to(tl.float32)
            gradient += of_v[:, None] * tl.load(proj + c * D + d, in_d, 0).to(tl.float32)[None, :]
        if NORM:
            scale = _reciprocal_rms(h, D, eps)
            of_norm += tl.sum(gradient * h * scale[:, None], axis=0)
            gradient = _of_norm(gradient, h, last, scale, D)
        tl.store(of_h + (patch * count + m)[:, None] * D + d[None, :], gradient.to(dtype), in_md)
    tl.store(shared + DEPTH * D + d, of_norm, in_d)
    for c in tl.static_range(C):
        of_proj = tl.zeros((D2,), tl.float32)
        of_bias = 0.0
        for start in range(0, count, PIXELS):
            m = start + tl.arange(0, PIXELS)
            in_m = m < count
            rows = (patch * (DEPTH + 1) + DEPTH) * count + m
            h = tl.load(inputs + rows[:, None] * D + d[None, :], in_m[:, None] & in_d[None, :], 0).to(tl.float32)
            if NORM:
                h *= _reciprocal_rms(h, D, eps)[:, None] * last[None, :]
            of_v = tl.load(of_out + (patch * count + m) * C + c, in_m, 0).to(tl.float32)
            of_proj += tl.sum(of_v[:, None] * h, axis=0)
            of_bias += tl.sum(of_v, axis=0)
        tl.store(shared + (DEPTH + 1 + c) * D + d, of_proj, in_d)
        tl.store(shared + (DEPTH + 1 + C) * D + c, of_bias)
    # Blocks, the last first. of_h is this program's own: written by all its threads before any reads on.
    for step in range(DEPTH):
        tl.debug_barrier()
        block = DEPTH - 1 - step
        first = (patch * DEPTH + block) * 2 * D * F
        at_w1 = first + d[:, None] * F + f[None, :]
        in_w1 = in_d[:, None] & in_f[None, :]
        at_w2 = first + D * F + f[:, None] * D + d[None, :]
        in_w2 = in_f[:, None] & in_d[None, :]
        w1, _ = _unit_columns(tl.load(generated + at_w1, in_w1, 0).to(tl.float32), True, smallest)
        w2, _ = _unit_columns(tl.load(generated + at_w2, in_w2, 0).to(tl.float32), UNIT_W2, smallest)
        w1, w2 = w1.to(dtype), w2.to(dtype)
        weight = tl.load(norms + block * D + d, in_d, 0).to(tl.float32)
        of_w1, of_w2 = tl.zeros((D2, F2), tl.float32), tl.zeros((F2, D2), tl.float32)
        of_weight = tl.zeros((D2,), tl.float32)
        for start in range(0, count, PIXELS):
            m = start + tl.arange(0, PIXELS)
            in_md = (m < count)[:, None] & in_d[None, :]
            rows = (patch * (DEPTH + 1) + block) * count + m
            h = tl.load(inputs + rows[:, None] * D + d[None, :], in_md, 0).to(tl.float32)
            at_h = of_h + (patch * count + m)[:, None] * D + d[None, :]
            gradient = tl.load(at_h, in_md, 0)
            scale = _reciprocal_rms(h, D, eps)
            n = (h * scale[:, None] * weight[None, :]).to(dtype)
            a = tl.dot(n, w1, input_precision=PRECISION)
            gate = tl.sigmoid(a)
            of_w2 += tl.dot(tl.trans((a * gate).to(dtype)), gradient, input_precision=PRECISION)
            of_a = tl.dot(gradient, tl.trans(w2), input_precision=PRECISION) * gate * (1 + a * (1 - gate))
            of_a = of_a.to(dtype)
            of_w1 += tl.dot(tl.trans(n), of_a, input_precision=PRECISION)
            of_n = tl.dot(of_a, tl.trans(w1), input_precision=PRECISION)
            of_weight += tl.sum(of_n * h * scale[:, None], axis=0)
            total = gradient.to(tl.float32) + _of_norm(of_n, h, weight, scale, D)
            tl.store(at_h, total.to(dtype), in_md)
        tl.store(shared + block * D + d, of_weight, in_d)
        w, norms_w = _unit_columns(tl.load(generated + at_w1, in_w1, 0).to(tl.float32), True, smallest)
        tl.store(of_generated + at_w1, _of_unit_columns(of_w1, w, norms_w, True).to(dtype), in_w1)
        w, norms_w = _unit_columns(tl.load(generated + at_w2, in_w2, 0).to(tl.float32), UNIT_W2, smallest)
        tl.store(of_generated + at_w2, _of_unit_columns(of_w2, w, norms_w, UNIT_W2).to(dtype), in_w2)


def _sizes(pixels: Tensor, generated: Tensor, norms: Tensor, norm: Tensor | None, unit_w2: bool) -> dict[str, Any]:
    """What the kernels are compiled for."""
    depth, width = norms.shape
    hidden = generated.shape[1] // (2 * depth * width)
    exact = generated.dtype == torch.float32 and torch.get_float32_matmul_precision() == 'highest'
    return dict(
        C=pixels.shape[2],
        D=width,
        F=hidden,
        # Tiles have sides of a power of two, and products of at least 16.
        D2=max(16, triton.next_power_of_2(width)),
        F2=max(16, triton.next_power_of_2(hidden)),
        DEPTH=depth,
        UNIT_W2=unit_w2,
        NORM=norm is not None,
        PRECISION='ieee' if exact else 'tf32',
        # Weights fill the shared memory: no second copy of them on its way.
        num_stages=1,
    )


def _smallest(dtype: torch.dtype) -> float:
    """Columns count as no shorter, as in :func:`~.norms.unit_columns`."""
    return max(1e-12, torch.finfo(dtype).tiny)


def _forward(tensors: tuple[Any, ...], unit_w2: bool, eps: float, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The velocity and, to ``keep`` for the backward pass, what enters each block and the output ``(N, ., M, D_x)``."""
    pixels, table, generated, embed, norms, norm, proj, bias = tensors
    (patches, count, _), (depth, width) = pixels.shape, norms.shape
    out = generated.new_empty(pixels.shape)
    inputs = generated.new_empty(patches, depth + 1, count, width) if keep else None
    if out.numel():
        with torch.cuda.device_of(out):
            _forward_kernel[(patches,)](
                pixels, table, generated, embed, norms, norm, proj, bias, out, inputs, count, eps,
                _smallest(generated.dtype), KEEP=keep, **FORWARD, **_sizes(pixels, generated, norms, norm, unit_w2),
            )  # fmt: skip
    return out, inputs


class _Field(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, unit_w2, eps = arguments
        out, inputs = _forward(tuple(tensors), unit_w2, eps, keep=True)
        ctx.save_for_backward(*tensors, inputs)
        ctx.unit_w2, ctx.eps = unit_w2, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        pixels, table, generated, embed, norms, norm, proj, bias, inputs = ctx.saved_tensors
        (patches, count, channels), (depth, width) = pixels.shape, norms.shape
        of_h = generated.new_empty(patches, count, width)
        of_generated = torch.empty_like(generated)
        shared = generated.new_empty(patches, (depth + 1 + channels) * width + channels, dtype=torch.float32)
        if of_out.numel():
            with torch.cuda.device_of(of_h):
                _backward_kernel[(patches,)](
                    of_out.contiguous(), inputs, generated, norms, norm, proj, of_h, of_generated, shared, count,
                    ctx.eps, _smallest(generated.dtype), **BACKWARD,
                    **_sizes(pixels, generated, norms, norm, ctx.unit_w2),
                )  # fmt: skip
        parts = shared.sum(0).split((depth * width, width, channels * width, channels))
        of_norms, of_norm, of_proj, of_bias = parts
        # Of the input layer; sums in a fixed order, where atomic additions would have none.
        flat = of_h.flatten(0, 1)
        of_embed = flat.t() @ pixels.flatten(0, 1).to(flat.dtype)
        return (
            (of_h @ embed.to(of_h.dtype)).to(pixels.dtype) if ctx.needs_input_grad[0] else None,
            of_h.sum(0, dtype=torch.float32).to(table.dtype),
            of_generated,
            of_embed.to(embed.dtype),
            of_norms.view_as(norms).to(norms.dtype),
            None if norm is None else of_norm.to(norm.dtype),
            of_proj.view_as(proj).to(proj.dtype),
            of_bias.to(bias.dtype),
            None,
            None,
        )
