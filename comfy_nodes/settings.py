"""What a run is sampled with: the widgets, and the model's own settings where they say 0."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from pixnerd_plugin.checkpoints.metadata import default_sampling
from pixnerd_plugin.formats.parts import build_part


class Settings(NamedTuple):
    """The settings of a run; ``shift`` 0 is the model's, and ``noise_limit`` 0 is none.

    With ``is_mean`` the network gives mean velocities: steps of Euler without guidance, whatever the widgets say.
    """

    steps: int
    cfg: float
    order: int
    shift: float
    start: float
    end: float
    noise_limit: float = 0.0
    is_mean: bool = False

    def __str__(self) -> str:
        limit = f', noise within {self.noise_limit:g}' if self.noise_limit else ''
        if self.is_mean:
            return f'{self.steps} MeanFlow steps, shift {self.shift:g}{limit}; cfg is ignored, the guidance is learned'
        return (
            f'{self.steps} steps, cfg {self.cfg:g}, order {self.order}, shift {self.shift:g}, '
            f'guidance where {self.start:g} < t < {self.end:g}{limit}'
        )


def resolve(metadata: dict[str, Any], widgets: Settings) -> Settings:
    """The widgets, with 0 replaced by what a file's ``metadata`` says, or by the published settings.

    A guidance interval that ends at 0 would guide nothing: it stands for the model's whole interval.
    """
    own: Any = build_part(metadata.get('sampling') or default_sampling(metadata['architecture']), 'sampler')
    if metadata['architecture'].get('step_end'):
        steps = widgets.steps or own.num_steps
        return Settings(steps, 1.0, 1, widgets.shift, 0.0, 1.0, own.noise_limit, is_mean=True)
    if 'guidance' in own.config():
        kind = own.config()['guidance']['type']
        logging.warning('PixNerd Sampler: the model was saved with %s, and core guides by cfg alone.', kind)
    start, end = (widgets.start, widgets.end) if widgets.end else own.guidance_interval
    return Settings(
        widgets.steps or own.num_steps,
        widgets.cfg or own.guidance_scale,
        widgets.order or own.order,
        widgets.shift,
        start,
        end,
        own.noise_limit,
    )
