"""Names that tell what a file's tensors are: what each program puts before a network's, and what lies beside it."""

from __future__ import annotations

from collections.abc import Iterable, Set

# Lightning's names tell which weights they are.
LABELLED = {'ema': 'ema_denoiser.', 'raw': 'denoiser.'}
UNLABELLED = ('backbone.', 'module.backbone.', 'model.diffusion_model.', 'diffusion_model.', 'state_dict.', '')

# The projector of the alignment loss, in the published layout and in ours.
PUBLISHED_PROJECTOR = 'diffusion_trainer.proj.0.'
PROJECTOR = 'loss.projector.'

# ComfyUI's loaders and savers pass tensors only, so there the metadata is one of them: its text as bytes.
METADATA_TENSOR = 'pixnerd_metadata'

# Tensors that every PixNerd has, by the names of each layout. Other networks have a patch_embed too.
_MARKS = (
    ('patch_embed.weight', 'time_embed.fc1.weight'),
    ('patch_embed.base_layer.weight', 'time_embed.fc1.weight'),
    ('s_embedder.proj.weight', 't_embedder.mlp.0.weight'),
)


def has_network(names: Set[str], prefix: str) -> bool:
    """Whether the tensors of a PixNerd are among ``names`` under ``prefix``."""
    return any(all(prefix + mark in names for mark in marks) for marks in _MARKS)


def find_prefix(names: Iterable[str], under: str = '') -> str | None:
    """What stands before a network's names among those that start with ``under``; None if there is no network.

    Of averaged and raw weights, the averaged ones, which are the ones to sample from.
    """
    names = set(names)
    prefixes = (LABELLED['ema'], LABELLED['raw'], *UNLABELLED)
    return next((under + prefix for prefix in prefixes if has_network(names, under + prefix)), None)
