"""Pictures by ComfyUI's native MODEL and by the library, from the same weights and noise."""

import torch

from .host import import_host

import_host()

from comfy_nodes.nodes import PixNerdEmptyImage, PixNerdSampler  # noqa: E402
from pixnerd_plugin.sampling import AdamsFlowSampler  # noqa: E402

SHIFT = {'class': 1.0, 'text': 3.0}
SIZE = (64, 96)
SEED = 11


def error(value, reference):
    with torch.no_grad():
        return float((value - reference).norm() / reference.norm())


def noise(size=SIZE, batch=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(SEED))


def empty(size=SIZE, batch=1):
    return PixNerdEmptyImage.execute(size[1], size[0], batch).args[0]


def sample(model, conds, size=SIZE, batch=1, latent=None, **changes):
    settings = dict(
        seed=SEED,
        steps=5,
        cfg=3.0,
        order=2,
        shift=0.0,
        guidance_start=0.0,
        guidance_end=1.0,
        denoise=1.0,
        record_field=False,
    )
    latent = latent or empty(size, batch)
    return PixNerdSampler.execute(model, *conds[1], latent, **{**settings, **changes}).args[0]


def reference(net, conds, size=SIZE, batch=1, **changes):
    timeshift = SHIFT['class' if net.num_classes else 'text']
    settings = dict(num_steps=5, order=2, guidance_scale=3.0, guidance_interval=(0.0, 1.0), timeshift=timeshift)
    cond, null = (c.expand(batch, *c.shape[1:]) for c in conds[0])
    return AdamsFlowSampler(**{**settings, **changes}).sample(net, noise(size, batch), cond, null)


def lora(net, prefix='diffusion_model.', down='lora_A.weight', up='lora_B.weight', separator='.'):
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, parameter in net.named_parameters():
        if parameter.ndim == 2 and name.endswith('.weight') and 'label_embed' not in name:
            out, inner = parameter.shape
            base = prefix + name.removesuffix('.weight').replace('.', separator)
            tensors[f'{base}.{down}'] = torch.randn(2, inner, generator=generator) / inner**0.5
            tensors[f'{base}.{up}'] = torch.randn(out, 2, generator=generator) * 0.3
    return tensors
