"""Muon for the matrices of the transformer's blocks and AdamW for all else, as one optimiser."""

from __future__ import annotations

import re
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIMIZERS
from torch import nn
from torch.optim import AdamW, Optimizer

from pixnerd_plugin.registry import OPTIM_WRAPPER_CONSTRUCTORS

_IN_BLOCKS = re.compile(r'(?:^|\.)(?:text_)?blocks\.\d+\.(?!modulation\.)')
_CONSTRUCTOR = 'MuonConstructor'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MuonConstructor(DefaultOptimWrapperConstructor):
    """Gives :class:`MuonAdamW` two groups of parameters: the matrices of the blocks, and the rest.

    Embeddings, the head, norms and biases are in the rest, as the authors of Muon advise. So are the modulations: they
    read the time, or time and class, so that their gradient has few directions, and they are the largest matrices.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None):
        if paramwise_cfg:
            raise ValueError(f'optim_wrapper.paramwise_cfg does not work with {_CONSTRUCTOR}; leave it out')
        super().__init__(optim_wrapper_cfg)
        # Any entry: mmengine then asks add_params for the groups.
        self.paramwise_cfg = dict(bypass_duplicate=True)

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **_: Any) -> None:
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                groups[parameter.ndim == 2 and _IN_BLOCKS.search(name) is not None].append(parameter)
        params += [dict(params=chosen, muon=muon) for muon, chosen in groups.items() if chosen]


@OPTIMIZERS.register_module()
class MuonAdamW(Optimizer):
    """``torch.optim.Muon`` for the groups that say ``muon=True`` and ``torch.optim.AdamW`` for the others.

    Muon replaces the momentum of a matrix by the nearest matrix with equal singular values (Jordan et al., 2024). Its
    updates are scaled to the size of AdamW's (Liu et al., 2025), so one learning rate serves both. It keeps one number
    for each parameter, and AdamW two.

    Args:
        params: groups as :class:`MuonConstructor` makes them.
        lr: learning rate of both.
        weight_decay: decoupled weight decay of both.
        betas, eps: AdamW's, which is fused.
        momentum, nesterov, ns_steps: Muon's.

    Raises:
        ValueError: if the groups do not say which are Muon's, or torch has no Muon.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
    ):
        if not hasattr(torch.optim, 'Muon'):
            raise ValueError(f'optimizer MuonAdamW needs torch 2.9 or newer, and this is {torch.__version__}')
        groups = list(params)
        if not all(isinstance(group, dict) and 'muon' in group for group in groups):
            raise ValueError(f"optimizer MuonAdamW needs optim_wrapper.constructor='{_CONSTRUCTOR}'")
        shared = dict(lr=lr, weight_decay=weight_decay)
        muon = dict(momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn='match_rms_adamw')
        kinds = {True: (torch.optim.Muon, muon), False: (AdamW, dict(betas=tuple(betas), eps=eps, fused=True))}
        self._inner: list[tuple[bool, Optimizer]] = []
        for is_muon, (kind, settings) in kinds.items():
            own = [group for group in groups if group['muon'] == is_muon]
            if own:
                self._inner.append((is_muon, kind(own, **shared, **settings)))
        super().__init__([group for _, inner in self._inner for group in inner.param_groups], shared)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do one step of each; ``closure`` is not supported."""
        for is_muon, inner in self._inner:
            # Linked anew each time: loading a state replaces both lists.
            inner.param_groups = [group for group in self.param_groups if group['muon'] == is_muon]
            inner.state = self.state
            if not is_muon:  # fused: told so that it leaves a step out that is not finite
                inner.found_inf = getattr(self, 'found_inf', None)  # type: ignore[attr-defined]
            inner.step()
