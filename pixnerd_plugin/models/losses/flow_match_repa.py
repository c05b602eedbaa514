"""The training objective: flow matching on the linear path, and representation alignment (paper Sec. 4; REPA)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixnerd_plugin.functional.prediction import time_of, true_velocity
from pixnerd_plugin.functional.time import shift_time
from pixnerd_plugin.registry import MODELS, build

from .density import draw_fine_pixels
from .terms import LossTerm


class NoisyBatch(NamedTuple):
    """What a loss compares the network on.

    Args:
        x_t: noisy picture ``(B, C, H, W)``, which the transformer reads.
        t: its times ``(B,)``.
        cond: conditions, those to drop replaced.
        pixels: noisy pixels ``(B, C, H, W)`` that the head is evaluated on; ``x_t`` at a single density.
        velocity: theirs.
        positions: where they are in a patch; None for the pixels of ``x_t``.
        teacher_features: ``(B, L, teacher_dim)``, or None.
    """

    x_t: Tensor
    t: Tensor
    cond: Tensor
    pixels: Tensor
    velocity: Tensor
    positions: tuple[Tensor, Tensor] | None
    teacher_features: Tensor | None

    def rows(self, rows: slice) -> NoisyBatch:
        """Some pictures of the batch."""
        parts = {
            name: part if part is None or name == 'positions' else part[rows] for name, part in self._asdict().items()
        }
        return NoisyBatch(**parts)

    def moved(self, velocities: tuple[Tensor, Tensor], length: Tensor) -> NoisyBatch:
        """Base picture and pixels after steps of lengths ``(B,)`` at ``velocities``."""
        step = length.view(-1, 1, 1, 1)
        x_t, pixels = self.x_t + step * velocities[0], self.pixels + step * velocities[1]
        return self._replace(x_t=x_t, t=self.t + length, pixels=pixels)


@MODELS.register_module()
class FlowMatchREPALoss(nn.Module):
    """``mean((v_net - v)^2) + w mean(1 - cos(proj(h_a), teacher(x)))`` with ``x_t = t x + (1 - t) e``, ``v = x - e``.

    Args:
        align_layer: block whose tokens are aligned, counted from 1.
        repa_weight: weight ``w`` of the alignment.
        timeshift: shift of the drawn times towards noise.
        time_std: standard deviation of the logit of the drawn times; 1 in the paper. A larger one trains more at both
            ends, where a sampler starts and finishes.
        cond_drop_prob: probability that a picture's condition is replaced by the null condition.
        teacher: maps images ``(B, 3, H, W)`` in [-1, 1] to features ``(B, L, teacher_dim)``: a callable, a registry
            dict, or None. It is not a submodule, so it stays out of checkpoints and the EMA.
        dim, projector_dim, teacher_dim: widths of the projector: input, hidden layers, output.
        max_density: above 1, train the field at several densities: ``images`` are then ``max_density`` times the base
            size, and each step draws a density between 1 and ``max_density`` (see :meth:`forward`).
        overlap: train a field up to this many base pixels outside of its patch too, on what its neighbours draw there,
            so that they agree where they meet. As many pixels as without are spread over the larger square.
        time_mean: mean of the logit of the drawn times; 0 in the paper.
        terms: further :class:`~.terms.LossTerm` parts, built or as dicts; each adds ``loss_NAME``.

    Attributes:
        per_image: the times ``t (B,)`` and each loss term ``(B,)`` of the last call, by name and detached; the mean
            of a term is what the call returned. For loss curves by time (paper Fig. 6).
    """

    def __init__(
        self,
        align_layer: int = 8,
        repa_weight: float = 0.5,
        timeshift: float = 1.0,
        cond_drop_prob: float = 0.1,
        teacher: Callable[[Tensor], Tensor] | dict[str, Any] | None = None,
        dim: int = 1152,
        projector_dim: int = 1152,
        teacher_dim: int = 768,
        max_density: int = 1,
        time_std: float = 1.0,
        time_mean: float = 0.0,
        terms: Sequence[LossTerm | dict[str, Any]] = (),
        overlap: float = 0.0,
    ):
        super().__init__()
        if not overlap >= 0:
            raise ValueError(f'FlowMatchREPALoss: overlap={overlap} must be 0 or more base pixels')
        self.align_layer = align_layer
        self.repa_weight = repa_weight
        self.timeshift = timeshift
        self.time_std = time_std
        self.time_mean = time_mean
        self.cond_drop_prob = cond_drop_prob
        self.max_density = max_density
        self.overlap = overlap
        self.projector = nn.Sequential(
            nn.Linear(dim, projector_dim),
            nn.SiLU(),
            nn.Linear(projector_dim, projector_dim),
            nn.SiLU(),
            nn.Linear(projector_dim, teacher_dim),
        )
        self.terms = nn.ModuleList(build(MODELS, term) for term in terms)
        if (max_density > 1 or overlap > 0) and (
            whole := [term for term in self.terms if getattr(term, 'needs_base_pixels', False)]
        ):
            raise ValueError(
                f'{type(whole[0]).__name__} compares whole pictures, and max_density={max_density}, overlap={overlap} '
                'draw single pixels of finer ones; set max_density=1 and overlap=0, or leave the term out'
            )
        # In a tuple, so that nn.Module does not register a teacher that is a module.
        self._teacher = (build(MODELS, teacher),)
        self.per_image: dict[str, Tensor] = {}

    @property
    def teacher(self) -> Callable[[Tensor], Tensor] | None:
        return self._teacher[0]

    @property
    def names(self) -> list[str]:
        """The names of the terms that a call without ``teacher_features`` returns."""
        aligned = ['loss_repa'] if self.teacher is not None else []
        return ['loss_flow', *aligned, *(f'loss_{term.name}' for term in self.terms)]

    def draw_time(self, batch: int, device: torch.device) -> Tensor:
        """Log-normal times ``(B,)``: ``sigmoid(N(time_mean, time_std^2))``, then the shift."""
        logits = self.time_mean + self.time_std * torch.randn(batch, device=device)
        return shift_time(logits.sigmoid(), self.timeshift)

    def forward(
        self,
        net: Any,
        images: Tensor,
        cond: Tensor,
        null_cond: Tensor | None = None,
        noise: Tensor | None = None,
        t: Tensor | None = None,
        teacher_features: Tensor | None = None,
        drop_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms in float32, all but the first already weighted.

        With ``max_density`` above 1 or an ``overlap``, the tokens come from the noisy base picture (``images`` averaged
        down). The field is evaluated on the usual number of pixels, which :func:`~.density.draw_fine_pixels` draws from
        the finer picture, and their values there are the target.

        Args:
            net: the backbone; its ``encode`` and ``decode`` are called.
            images: ``(B, C, H, W)`` in [-1, 1].
            cond, null_cond: conditions and null conditions of the batch; ``null_cond`` may have batch size 1.
            noise: standard normal ``(B, C, h, w)`` of base size; drawn if not given, like ``t`` and ``drop_mask``.
            t: times ``(B,)``, after the shift.
            teacher_features: ``(B, L, teacher_dim)``; computed by the teacher if not given.
            drop_mask: booleans ``(B,)``, true where the condition is dropped.

        Returns:
            ``dict(loss_flow, loss_repa)``, and a ``loss_NAME`` for each of ``terms``. Without a teacher and
            ``teacher_features``, there is no ``loss_repa``.

        Raises:
            ValueError: if conditions are to be dropped and there is no ``null_cond``.
        """
        batch = self.draw(net, images, cond, null_cond, noise, t, teacher_features, drop_mask)
        s, features = net.encode(batch.x_t, batch.t, batch.cond, feature_layer=self._aligned(batch))
        grid, time = net.grid_of(batch.x_t), time_of(net, batch.t)
        prediction = net.decode(s, batch.pixels, grid, batch.positions, **time).float()
        velocity = batch.velocity.float()
        self.per_image = dict(t=batch.t, loss_flow=(prediction.detach() - velocity).square().mean((1, 2, 3)))
        losses = dict(loss_flow=F.mse_loss(prediction, velocity))
        return losses | self._further_terms(batch, prediction, velocity, features)

    def draw(
        self,
        net: Any,
        images: Tensor,
        cond: Tensor,
        null_cond: Tensor | None = None,
        noise: Tensor | None = None,
        t: Tensor | None = None,
        teacher_features: Tensor | None = None,
        drop_mask: Tensor | None = None,
    ) -> NoisyBatch:
        """Draw what is not given, and mix it: the noisy batch of a training step. Arguments as in :meth:`forward`."""
        base, positions = images, None
        if self.max_density > 1:
            base = F.interpolate(images, scale_factor=1 / self.max_density, mode='area')
        batch, device = len(base), base.device
        noise = torch.randn_like(base) if noise is None else noise
        t = self.draw_time(batch, device) if t is None else t
        if drop_mask is None and self.cond_drop_prob > 0:
            drop_mask = torch.rand(batch, device=device) < self.cond_drop_prob
        if drop_mask is not None:
            cond = drop_condition(cond, null_cond, drop_mask)
        if teacher_features is None and self.teacher is not None:
            teacher_features = self.teacher(base).detach()

        time = t.view(-1, 1, 1, 1)
        x_t = time * base + (1 - time) * noise
        pixels, target, target_noise = x_t, base, noise
        if self.max_density > 1 or self.overlap > 0:
            target, target_noise, positions = draw_fine_pixels(images, noise, net.patch_size, self.overlap)
            pixels = time * target + (1 - time) * target_noise
        velocity = true_velocity(target, target_noise, t, getattr(net, 'prediction', 'velocity'))
        return NoisyBatch(x_t, t, cond, pixels, velocity, positions, teacher_features)

    def _aligned(self, batch: NoisyBatch) -> int | None:
        return self.align_layer if batch.teacher_features is not None else None

    def _further_terms(
        self, batch: NoisyBatch, prediction: Tensor, velocity: Tensor, features: Tensor | None
    ) -> dict[str, Tensor]:
        """All terms but the first, weighted; ``per_image`` gets them too."""
        losses = {}
        if features is not None and batch.teacher_features is not None:
            similarity = F.cosine_similarity(self.projector(features).float(), batch.teacher_features.float(), dim=-1)
            losses['loss_repa'] = self.repa_weight * (1 - similarity).mean()
            self.per_image['loss_repa'] = self.repa_weight * (1 - similarity.detach()).mean(1)
        for term in self.terms:
            each = term(prediction, velocity, batch.pixels, batch.t)
            losses[f'loss_{term.name}'] = term.weight * each.mean()
            self.per_image[f'loss_{term.name}'] = term.weight * each.detach()
        return losses


def drop_condition(cond: Tensor, null_cond: Tensor | None, mask: Tensor) -> Tensor:
    """Replace ``cond`` by ``null_cond`` where ``mask (B,)`` is true."""
    if null_cond is None:
        raise ValueError('dropping conditions needs null_cond; pass it, or set cond_drop_prob=0')
    return torch.where(mask.view(-1, *[1] * (cond.ndim - 1)), null_cond.to(cond), cond)
