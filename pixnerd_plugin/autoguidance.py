"""Autoguidance: leading a network away from a weaker version of itself (Karras et al. 2024, arXiv 2406.02507)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from pixnerd_plugin.checkpoints import load_backbone
from pixnerd_plugin.registry import MODELS
from pixnerd_plugin.sampling.guidance import Guidance, Pair, Run, guide
from pixnerd_plugin.sampling.network import ConditionedNetwork


@MODELS.register_module()
class AutoGuidance(Guidance):
    """``v_weak + g (v_cond - v_weak)``, both under the condition.

    Args:
        network: the weaker network, such as a smaller one or an earlier checkpoint: a module, or the path of a file,
            which is loaded at the first picture. No file names it: it is given anew each time.
        weights: ``'ema'`` or ``'raw'``, those of the file to load.
        scale, interval: as in :class:`~.sampling.guidance.Guidance`.
    """

    needs_null = False
    recordable = False

    def __init__(
        self,
        network: nn.Module | str | Path | None = None,
        weights: str = 'ema',
        scale: float | None = None,
        interval: Sequence[float] | None = None,
    ):
        super().__init__(scale, interval)
        self.network = network
        self.weights = weights
        # Shared by the copies that samplers make of this part, so that a file is read once.
        self._loaded: list[nn.Module] = [network] if isinstance(network, nn.Module) else []

    def velocities(self, net: ConditionedNetwork) -> Pair:
        """Two networks, one after the other; the weaker one moves to the device and dtype of ``net``.

        Raises:
            FileNotFoundError, ValueError: if there is no weaker network, or its file does not load.
        """
        if self.network is None:
            raise ValueError(
                'AutoGuidance needs the weaker network: guidance=dict(type="AutoGuidance", network=FILE), or '
                '--guidance-network FILE on the command line'
            )
        if not self._loaded:
            self._loaded.append(load_backbone(str(self.network), self.weights))
        weak = net.of(self._loaded[0].to(net.cond.device, net.dtype).eval())

        def pair(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
            return weak.conditional(x, t), net.conditional(x, t)

        return pair

    def combine(self, away: Tensor, cond: Tensor, x: Tensor, t: float, scale: float, run: Run) -> Tensor:
        return guide(away, cond, scale)
