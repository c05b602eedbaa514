"""The neural field alone on a GPU: its Triton kernel against its own operations."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from pixnerd_plugin.models.heads import fused
from pixnerd_plugin.registry import MODELS, build

from .networks import SHAPES, relative_difference

# Network, patches, and the side of a patch in pixels: 256 at batch 1 and 32, and 2048 from 32x32 tokens.
CASES = (('xl16', 256, 16), ('xl16', 32 * 256, 16), ('xxl16', 1024, 64))
DRY_CASES = (('tiny', 4, 16), ('tiny-text', 4, 24))


def field(report: Any) -> None:
    """Agreement and time of both ways, forward and with all gradients, in bfloat16."""
    for name, patches, side in DRY_CASES if report.dry else CASES:
        label = f'{name}, {patches} patches of {side}x{side}'
        if not report.has():
            return
        with report.problems(label):
            compare(report, label, *head_of(report, name, patches, side))
        report.forget()


def head_of(report: Any, name: str, patches: int, side: int) -> tuple[Any, Tensor, Tensor]:
    """A head in bfloat16, patch vectors and pixels."""
    torch.manual_seed(report.seed)
    shape = SHAPES[name]
    head = build(MODELS, shape.config()['head'], dim=shape.dim, patch_size=16, in_channels=3)
    torch.nn.init.normal_(head.proj.weight, std=0.2)
    s, pixels = torch.randn(1, patches, shape.dim), torch.randn(1, patches, side, side, 3)
    return head.to(report.device, torch.bfloat16), *(tensor.to(report.device, torch.bfloat16) for tensor in (s, pixels))


def compare(report: Any, label: str, head: Any, s: Tensor, pixels: Tensor) -> None:
    """Rows of one case."""
    if not fused.takes(head, s):
        report.add(label, 'the kernel is not used', 'no Triton, or it failed its trial: see the log')
    results: dict[bool, list[Tensor]] = {}
    seconds: dict[tuple[str, bool], float] = {}
    for kernel in (False, True):
        how = 'by the kernel' if kernel else 'by operations'
        head.kernel = kernel

        def forward() -> Tensor:
            with torch.no_grad():
                return head(s, pixels)

        def step() -> list[Tensor]:
            v = head(s, pixels)
            return [v.detach(), *torch.autograd.grad(v, list(head.parameters()), pixels)]

        # Gradients keep every activation of the operations: too many for the larger cases of some GPUs.
        calls = {'forward': forward, 'forward and backward': step}
        for what, call in calls.items():
            with report.problems(f'{label}, {what}, {how}'):
                memory = report.peak(call)
                seconds[what, kernel] = statistics.median(report.seconds(call, 0.5))
                gain = seconds.get((what, False), 0) / seconds[what, kernel]
                detail = f'{gain:.2f}x of the operations, {memory}' if kernel and gain else memory
                report.add(f'{label}, {what}, {how}', f'{1000 * seconds[what, kernel]:.3f} ms', detail)
        with report.problems(label):
            results[kernel] = step()
    if len(results) == 2:
        names = ['velocity', *dict(head.named_parameters())]
        errors = [relative_difference(a, b) for a, b in zip(results[True], results[False], strict=True)]
        worst = max(range(len(errors)), key=errors.__getitem__)
        report.add(
            label,
            f'{errors[0]:.1e}',
            f'relative difference of velocities; at most {errors[worst]:.1e}, of {names[worst]}',
        )
