"""The core's network under ComfyUI's calling convention."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn

from pixnerd_plugin.models.backbones import PixNerdDiT

from .guards import check_finite, check_sigma
from .hooks import PatchHooks, refuse_foreign_patches
from .padding import area_grid, grid_of, pad, padded_size

OPTIONS = 'pixnerd'
"""Key of ``transformer_options`` with ``token_grid``, ``field_chunk``, ``blend`` and ``record``; all optional."""

CHECKED_EVERY = 8
"""Calls of a run of which one is checked on a device that must be waited for; what is not finite stays so."""

READ_AT_ONCE = ('cpu',)
"""Devices whose numbers are read without waiting."""


class Positions(nn.Module):
    """Learned positions ``(1, N, D)`` as a layer: core patches, casts and offloads layers, not bare parameters."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def __getitem__(self, index: Any) -> Tensor:
        return self.weight[index]


class ComfyPixNerdDiT(PixNerdDiT):
    """The core's network, its sigma being ``1 - t`` and its output ``-v``."""

    def __init__(self, image_model: str, dtype: torch.dtype | None = None, **architecture: Any):
        super().__init__(dtype=dtype, **architecture)
        self.dtype = dtype
        self._calls: tuple[Any, int] = (None, 0)
        if self.text_dim is not None:
            weight = self.text_embed.positions
            del self.text_embed.positions
            self.text_embed.positions = Positions(weight)
        if dtype is not None and dtype.itemsize == 1:
            keep_small(self)

    def init_weights(self) -> None:
        """Nothing: every weight comes from the file, and float8 tensors cannot be drawn at random."""

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        labels: Tensor | None = None,
        picture: tuple[int, int] | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> Tensor:
        """``-v`` of ``x (B, 3, H, W)`` at ``t = 1 - timestep``, of any size.

        Args:
            x: the picture, or an area of it.
            timestep: sigma ``(B,)``.
            context: text embeddings ``(B, N, text_dim)``, for text models.
            labels: shares of the classes ``(B, num_classes)``, for class models.
            picture: height and width of the whole picture; default: those of ``x``.
            control: what a ControlNet gives; there is none for PixNerd.
            transformer_options: core's; see :class:`~.hooks.PatchHooks`.
        """
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        # A copy, because EasyCache adds to what it is handed, and in float32 that is the sampler's own tensor.
        return executor.execute(x.clone() if wrappers else x, timestep, context, labels, picture, control, options)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None,
        labels: Tensor | None,
        picture: tuple[int, int] | None,
        control: Any,
        options: dict[str, Any],
    ) -> Tensor:
        if control is not None:
            raise ValueError('there is no ControlNet for PixNerd: take Apply ControlNet out.')
        refuse_foreign_patches(options)
        is_checked = self._is_checked(options.get('sample_sigmas'), x.device)
        if is_checked:
            check_sigma(float(timestep[0]))
        settings = options.get(OPTIONS, {})
        height, width = x.shape[2:]
        fixed = area_grid((height, width), picture or (height, width), settings.get('token_grid'))
        grid = grid_of((height, width), self.patch_size, fixed)
        pixels = pad(x, padded_size((height, width), self.patch_size, fixed))
        t = 1 - timestep
        cond = context if self.num_classes is None else labels
        r = step_end(timestep, options.get('sample_sigmas')) if self.step_end else None
        s, _ = self.encode(pixels, t, cond, grid, r=r, hooks=PatchHooks(options, self.depth))
        velocity = self.decode(
            s, pixels, grid, field_chunk=settings.get('field_chunk'), blend=settings.get('blend', 0.0), t=t
        )
        velocity = velocity[:, :, :height, :width]
        if is_checked:
            check_finite(velocity, t[0])
        if 'record' in settings:
            settings['record'](s, options)
        return -velocity

    def _is_checked(self, sigmas: Tensor | None, device: torch.device) -> bool:
        """Whether to read this call's numbers: always where that costs nothing, else once in some calls of a run.

        The picture is checked at the end of a run (see :meth:`~.model.PixNerdModel.process_latent_out`).
        """
        if sigmas is None or device.type in READ_AT_ONCE:
            return True
        run, calls = self._calls
        calls = calls + 1 if run is sigmas else 0
        # The same tensor all through a run.
        self._calls = (sigmas, calls)
        return calls % CHECKED_EVERY == 0


def step_end(timestep: Tensor, sigmas: Tensor | None) -> Tensor | None:
    """Where the step that begins at sigma ``timestep (B,)`` ends, as times ``(B,)``; None if core does not tell.

    Core's samplers call the model at one of the ``sigmas`` of the run, and Euler's goes to the next of them.
    """
    if sigmas is None:
        return None
    lower = sigmas[sigmas < timestep[0].to(sigmas) - 1e-4]
    return None if not len(lower) else torch.full_like(timestep, 1 - float(lower.max()))


def is_block_matrix(name: str, ndim: int) -> bool:
    """Whether a weight is one of those that float8 may hold, as the converter does it: the blocks' matrices alone."""
    return ndim == 2 and name.startswith(('blocks.', 'text_blocks.'))


def keep_small(net: nn.Module) -> None:
    """Give all but the blocks' matrices bfloat16 back; core makes everything in the dtype that is chosen."""
    for name, layer in net.named_modules():
        for kind in ('weight', 'bias'):
            if not hasattr(layer, kind):
                continue
            parameter = getattr(layer, kind)
            # Newer core makes linear layers without weights, and a note of the dtype to come.
            ndim = parameter.ndim if parameter is not None else 2 if kind == 'weight' else 1
            if is_block_matrix(name, ndim):
                continue
            if parameter is not None:
                parameter.data = parameter.data.to(torch.bfloat16)
            elif hasattr(layer, f'{kind}_comfy_model_dtype'):
                setattr(layer, f'{kind}_comfy_model_dtype', torch.bfloat16)
