"""Sampling, all of it by core's guider: the solver, its sigmas and the guidance interval are what these nodes add."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from pixnerd_plugin.sampling import AdamsFlowSampler

from ..field import FIELD, RecordedField, Recorder, require_recordable
from ..model import OPTIONS, require_pixnerd, with_options
from ..solver import interval_wrapper, model_shift, published_sigmas, sample_adams

WRAPPER_KEY = 'pixnerd_guidance_interval'


def _steps() -> io.Int.Input:
    return io.Int.Input(
        'steps', default=25, min=1, max=1000, tooltip='Steps, each one call of the model. Published: 25 for text.'
    )


def _order() -> io.Int.Input:
    return io.Int.Input(
        'order',
        default=2,
        min=1,
        max=4,
        tooltip='How many of the last steps the solver looks at: 1 is Euler, 2 the published setting.',
    )


def _shift() -> io.Float.Input:
    return io.Float.Input(
        'shift',
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        tooltip='Above 1, more of the steps go to the noisy part. 0 takes that of the model (3 for text, 1 for '
        'classes) or of a shift node before it.',
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


def _interval() -> list[io.Float.Input]:
    common = dict(min=0.0, max=1.0, step=0.01)
    return [
        io.Float.Input(
            'guidance_start',
            default=0.0,
            **common,
            tooltip='Guide only after this time; 0 is noise, 1 the picture. The time itself is left out, so at 0 the '
            'first step is unguided, as published.',
        ),
        io.Float.Input(
            'guidance_end',
            default=1.0,
            **common,
            tooltip='Guide only before this time. Steps without guidance take half the work.',
        ),
    ]


def _guided_inside(model: Any, start: float, end: float) -> Any:
    if start > end:
        raise ValueError(f'guidance_start is {start}, after guidance_end {end}: set it to {end} or less.')
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, WRAPPER_KEY, interval_wrapper(start, end))
    return model


def _shift_of(model: Any, shift: float) -> float:
    return shift or model_shift(model.get_model_object('model_sampling').percent_to_sigma)


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
                _steps(),
                io.Float.Input(
                    'cfg',
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip='Guidance scale: how closely to follow the prompt or class. 1 turns guidance off.',
                ),
                _order(),
                _shift(),
                *_interval(),
                _denoise(),
                io.Boolean.Input(
                    'record_field',
                    default=False,
                    tooltip='Keep what PixNerd Decode needs to render this picture at any size. It takes memory: about '
                    '150 MB for a picture of 512x512 in 25 steps.',
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
    ) -> io.NodeOutput:
        require_pixnerd(model, 'model')
        samples = latent['samples']
        if samples.ndim != 4 or samples.shape[1] != 3:
            raise ValueError(
                f'latent is of shape {tuple(samples.shape)}, the latent of another model: connect PixNerd Empty Image, '
                'or an image through VAE Encode with the VAE of PixNerd Model Loader.'
            )
        if record_field:
            require_recordable(model.model_options, latent, denoise)
        recorder = Recorder()
        guided = _guided_inside(model, guidance_start, guidance_end)
        shift = _shift_of(model, shift)
        sigmas = published_sigmas(steps, shift, denoise)
        noise = comfy.sample.prepare_noise(samples, seed, latent.get('batch_index'))
        preview = latent_preview.prepare_callback(guided, max(len(sigmas) - 1, 0))

        def after_step(step: int, denoised: torch.Tensor, x: torch.Tensor, total: int) -> None:
            if record_field:
                recorder.end_step()
            preview(step, denoised, x, total)

        guider = comfy.samplers.CFGGuider(with_options(guided, record=recorder.record) if record_field else guided)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        result = guider.sample(
            noise,
            samples,
            comfy.samplers.KSAMPLER(sample_adams, {'order': order}),
            sigmas,
            denoise_mask=latent.get('noise_mask'),
            callback=after_step,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        ).to(comfy.model_management.intermediate_device())

        out = {**latent, 'samples': result}
        out.pop(FIELD, None)
        if record_field:
            patch = model.model.diffusion_model.patch_size
            grid = model.model_options['transformer_options'].get(OPTIONS, {}).get('token_grid')
            grid = grid or (noise.shape[2] // patch, noise.shape[3] // patch)
            solver = AdamsFlowSampler(steps, order, cfg, (guidance_start, guidance_end), shift)
            out[FIELD] = RecordedField(model, result, noise, solver, grid, recorder.tokens)
        return io.NodeOutput(out)


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
            inputs=[io.Model.Input('model', tooltip='Any flow model.'), *_interval()],
            outputs=[io.Model.Output(display_name='MODEL', tooltip='The model with this setting.')],
        )

    @classmethod
    def execute(cls, model: Any, guidance_start: float, guidance_end: float) -> io.NodeOutput:
        return io.NodeOutput(_guided_inside(model, guidance_start, guidance_end))
