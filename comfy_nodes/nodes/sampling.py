"""Sampling, all of it by core's guider: the solver, its sigmas and the guidance interval are what these nodes add."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from pixnerd_plugin.sampling import AdamsFlowSampler, FlowSampler, MeanFlowSampler
from pixnerd_plugin.sampling.plan import apply_plan

from ..field import FIELD, RecordedField, Recorder, require_recordable
from ..guards import check_interval, check_shift
from ..model import require_pixnerd, with_options
from ..network import OPTIONS
from ..padding import grid_of, pad, padded_size
from ..schema import advanced, search_aliases
from ..settings import Settings, resolve
from ..solver import INTERVAL, interval_wrapper, model_shift, published_sigmas, sample_adams


def _steps(own: bool = False) -> io.Int.Input:
    return io.Int.Input(
        'steps',
        default=0 if own else 25,
        min=0 if own else 1,
        max=1000,
        tooltip='Steps, each one call of the model. 0: as the model was published or saved (25 for text, 100 for '
        'classes).'
        if own
        else 'Steps, each one call of the model. Published: 25 for text.',
    )


def _order(own: bool = False) -> io.Int.Input:
    return advanced(
        io.Int.Input(
            'order',
            default=0 if own else 2,
            min=0 if own else 1,
            max=4,
            tooltip='How many of the last steps the solver looks at: 1 is Euler, 2 the published setting for text.'
            + (' 0: that of the model.' if own else ''),
        ),
        own,
    )


def _shift() -> io.Float.Input:
    return advanced(
        io.Float.Input(
            'shift',
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip='Above 1, more of the steps go to the noisy part. 0 takes that of the model (3 for text, 1 for '
            'classes) or of a shift node before it.',
        )
    )


def _denoise() -> io.Float.Input:
    return io.Float.Input(
        'denoise',
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip='Below 1, start from the image given as latent with that share of noise.',
    )


def _interval(own: bool = False) -> list[io.Float.Input]:
    common: dict[str, Any] = dict(min=0.0, max=1.0, step=0.01)
    widgets = [
        io.Float.Input(
            'guidance_start',
            default=0.0,
            **common,
            tooltip='Guide only after this time; 0 is noise, 1 the picture. The time itself is left out, so at 0 the '
            'first step is unguided, as published.',
        ),
        io.Float.Input(
            'guidance_end',
            default=0.0 if own else 1.0,
            **common,
            tooltip='Guide only before this time. Steps without guidance take half the work.'
            + (" 0: guidance_start and guidance_end are the model's." if own else ''),
        ),
    ]
    return [advanced(widget, own) for widget in widgets]


def _guided_inside(model: Any, start: float, end: float) -> Any:
    check_interval(start, end)
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, INTERVAL, interval_wrapper(start, end))
    return model


def _shift_of(model: Any, shift: float) -> float:
    return check_shift(shift) if shift else model_shift(model.get_model_object('model_sampling').percent_to_sigma)


def _as_image(model: Any, latent: dict[str, Any]) -> torch.Tensor:
    """The samples of a LATENT; an empty one of any model becomes an empty picture of the size it stands for."""
    samples = latent['samples']
    fix = comfy.sample.fix_empty_latent_channels
    if samples.ndim == 4:
        if 'downscale_ratio_spacial' in inspect.signature(fix).parameters:
            ratios = (latent.get('downscale_ratio_spacial'), latent.get('downscale_ratio_temporal'))
            samples = fix(model, samples, *ratios)
        elif samples.shape[1] != 3 and not samples.any():
            # Before core noted the scale of an empty latent, that of the VAEs then: eight.
            batch, _, height, width = samples.shape
            samples = samples.new_zeros(batch, 3, height * 8, width * 8)
    if samples.ndim != 4 or samples.shape[1] != 3:
        raise ValueError(
            f'latent is of shape {tuple(samples.shape)}, the latent of another model: connect PixNerd Empty Image, '
            'or an image through VAE Encode with the VAE of PixNerd Model Loader.'
        )
    return samples


def _in_batch(conds: list, batch_index: list[int] | None) -> list:
    """Conditionings whose rows are those of the pictures with these numbers; core would begin with the first."""
    if not batch_index:
        return conds
    return [[c[[index % len(c) for index in batch_index]] if len(c) > 1 else c, extra] for c, extra in conds]


class PixNerdSampler(io.ComfyNode):
    """The published sampling, on core's guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdSampler',
            display_name='PixNerd Sampler',
            category='PixNerd/sampling',
            description='Draws a picture the way the model was published: Adams solver, its time grid and guidance '
            'interval. With record_field on, PixNerd Decode can then render it at any size.',
            **search_aliases('pixnerd', 'neural field', 'pixel diffusion', 'ksampler'),
            inputs=[
                io.Model.Input('model', tooltip='A PixNerd model.'),
                io.Conditioning.Input('positive', tooltip='What to draw.'),
                io.Conditioning.Input('negative', tooltip='What guidance leads away from.'),
                io.Latent.Input('latent', tooltip='From PixNerd Empty Image, or an image through VAE Encode.'),
                io.Int.Input(
                    'seed',
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip='Seed of the noise: the same seed and settings give the same picture.',
                ),
                _steps(own=True),
                io.Float.Input(
                    'cfg',
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip='Guidance scale: how closely to follow the prompt or class. 1 turns guidance off. 0: that '
                    'of the model (4 for text, 3.5 for classes).',
                ),
                _order(own=True),
                _shift(),
                *_interval(own=True),
                _denoise(),
                io.Boolean.Input(
                    'record_field',
                    default=False,
                    tooltip='Keep what PixNerd Decode needs to render this picture at any size. It takes memory: about '
                    '150 MB for a picture of 512x512 in 25 steps.',
                ),
                advanced(
                    io.Boolean.Input(
                        'planned',
                        default=False,
                        optional=True,
                        tooltip='Take the times, and the steps to guide, that were chosen for this model and so many '
                        'steps (tools/analysis_tools/solver_error.py plan); the file must have them.',
                    )
                ),
            ],
            outputs=[io.Latent.Output(display_name='LATENT', tooltip='For PixNerd Decode or VAE Decode.')],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list,
        negative: list,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        order: int,
        shift: float,
        guidance_start: float,
        guidance_end: float,
        denoise: float,
        record_field: bool,
        planned: bool = False,
    ) -> io.NodeOutput:
        require_pixnerd(model, 'model')
        samples = _as_image(model, latent)
        if record_field:
            require_recordable(model, {'positive': positive, 'negative': negative}, latent, denoise)
        overrides = bool(shift or guidance_end)
        shift = _shift_of(model, shift)
        widgets = Settings(steps, cfg, order, shift, guidance_start, guidance_end)
        metadata = model.model.model_config.metadata
        settings = resolve(metadata, widgets)
        check_interval(settings.start, settings.end)
        solver, sigmas = _solver(settings), published_sigmas(settings.steps, shift, denoise)
        if planned:
            solver = _planned(solver, metadata, denoise)
            settings = settings._replace(start=solver.guidance_interval[0], end=solver.guidance_interval[1])
            sigmas = (1 - solver.timesteps).float()
        logging.info('PixNerd Sampler: %s%s', settings, _planned_note(overrides) if planned else '')
        guided = _guided_inside(model, settings.start, settings.end)
        batch_index = latent.get('batch_index')
        noise = solver.limit(comfy.sample.prepare_noise(samples, seed, batch_index))
        preview = latent_preview.prepare_callback(guided, max(len(sigmas) - 1, 0))

        guider = comfy.samplers.CFGGuider(guided)
        recorder = Recorder(guider)
        if record_field:
            guider = comfy.samplers.CFGGuider(with_options(guided, record=recorder.record))
            recorder.guider = guider
        guider.set_conds(_in_batch(positive, batch_index), _in_batch(negative, batch_index))
        guider.set_cfg(settings.cfg)

        def after_step(step: int, denoised: torch.Tensor, x: torch.Tensor, total: int) -> None:
            if record_field:
                recorder.end_step()
            preview(step, denoised, x, total)

        result = guider.sample(
            noise,
            samples,
            comfy.samplers.KSAMPLER(sample_adams, {'order': settings.order}),
            sigmas,
            denoise_mask=latent.get('noise_mask'),
            callback=after_step,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        ).to(comfy.model_management.intermediate_device())

        dropped = (FIELD, 'downscale_ratio_spacial', 'downscale_ratio_temporal')
        out = {name: value for name, value in latent.items() if name not in dropped}
        out['samples'] = result
        if record_field:
            out[FIELD] = _field(model, result, batch_index, noise, solver, recorder.tokens)
        return io.NodeOutput(out)


def _solver(settings: Settings) -> FlowSampler:
    """The library's solver with these settings."""
    if settings.is_mean:
        return MeanFlowSampler(settings.steps, settings.shift, noise_limit=settings.noise_limit)
    interval = (settings.start, settings.end)
    return AdamsFlowSampler(
        settings.steps, settings.order, settings.cfg, interval, settings.shift, noise_limit=settings.noise_limit
    )


def _planned_note(overrides: bool) -> str:
    """What the log says of planned times, also where widgets of what a plan chooses are not 0."""
    return ', planned times' + ('; shift, guidance_start and guidance_end are ignored' if overrides else '')


def _planned(solver: FlowSampler, metadata: dict[str, Any], denoise: float) -> FlowSampler:
    if denoise < 0.9999:
        raise ValueError('planned holds for runs from pure noise: set denoise to 1, or turn planned off.')
    try:
        return apply_plan(solver, metadata.get('plans', ()))
    except ValueError as error:
        raise ValueError(f'planned: the model cannot be drawn so, because {error}; or turn planned off.') from None


def _field(
    model: Any,
    samples: torch.Tensor,
    batch_index: list[int] | None,
    noise: torch.Tensor,
    solver: FlowSampler,
    tokens: list[torch.Tensor],
) -> RecordedField:
    patch_size, size = model.model.diffusion_model.patch_size, (noise.shape[2], noise.shape[3])
    fixed = model.model_options['transformer_options'].get(OPTIONS, {}).get('token_grid')
    indices = list(batch_index or range(len(noise)))
    padded = pad(noise, padded_size(size, patch_size, fixed))
    return RecordedField(model, samples, indices, padded, solver, grid_of(size, patch_size, fixed), tokens)


class PixNerdAdamsSolver(io.ComfyNode):
    """The Adams solver for SamplerCustom and SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdAdamsSolver',
            display_name='PixNerd Adams Solver',
            category='PixNerd/sampling',
            description='The solver of PixNerd Sampler, for SamplerCustomAdvanced. Unlike lms it stays of its order in '
            'the last step.',
            **search_aliases('pixnerd', 'adams bashforth', 'lms'),
            inputs=[_order()],
            outputs=[io.Sampler.Output(display_name='SAMPLER', tooltip='For SamplerCustom or SamplerCustomAdvanced.')],
        )

    @classmethod
    def execute(cls, order: int) -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_adams, {'order': order}))


class PixNerdSigmas(io.ComfyNode):
    """The published time grid as SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdSigmas',
            display_name='PixNerd Sigmas',
            category='PixNerd/sampling',
            description='The time grid of PixNerd Sampler, for SamplerCustomAdvanced. The scheduler simple agrees with '
            'it when the steps divide 1000.',
            **search_aliases('pixnerd', 'scheduler'),
            inputs=[
                io.Model.Input('model', tooltip='The model that is sampled: it knows its shift.'),
                _steps(),
                _shift(),
                _denoise(),
            ],
            outputs=[io.Sigmas.Output(display_name='SIGMAS', tooltip='For SamplerCustom or SamplerCustomAdvanced.')],
        )

    @classmethod
    def execute(cls, model: Any, steps: int, shift: float, denoise: float) -> io.NodeOutput:
        return io.NodeOutput(published_sigmas(steps, _shift_of(model, shift), denoise))


class PixNerdGuidanceInterval(io.ComfyNode):
    """Guidance in an interval of time only, for any sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='PixNerdGuidanceInterval',
            display_name='PixNerd Guidance Interval',
            category='PixNerd/model',
            description='Turns guidance off outside an interval of time, for KSampler and every other sampler. There '
            'the negative half is not computed.',
            **search_aliases('pixnerd', 'cfg interval', 'limited interval'),
            inputs=[io.Model.Input('model', tooltip='Any flow model.'), *_interval()],
            outputs=[io.Model.Output(display_name='MODEL', tooltip='The model with this setting.')],
        )

    @classmethod
    def execute(cls, model: Any, guidance_start: float, guidance_end: float) -> io.NodeOutput:
        return io.NodeOutput(_guided_inside(model, guidance_start, guidance_end))
