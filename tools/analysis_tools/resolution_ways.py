"""Ways of drawing larger than trained, and measures of what comes out. Pictures are ``(B, 3, H, W)`` in [-1, 1]."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from pixnerd_plugin.functional.blending import BLEND
from pixnerd_plugin.functional.noise import continuous_noise


@contextmanager
def aligned(net, alignment: str) -> Iterator[None]:
    """Meanwhile the pixels of ``net`` sit in their patches by this rule."""
    own, net.head.alignment = net.head.alignment, alignment
    try:
        yield
    finally:
        net.head.alignment = own


def paper_sample(net, sampler, noise, labels, null, scale: int):
    """The paper's way: tokens from the large noisy picture at every step, corners, noise of its own in every pixel."""
    patches = noise.shape[-1] // net.patch_size
    with aligned(net, 'corners'):
        return fixed_tokens(net, sampler, finer_noise(noise, scale), labels, null, (patches, patches))


def fixed_tokens(net, sampler, noise, labels, null, grid: tuple[int, int], blend: float = 0.0):
    """Sample at the size of ``noise`` with the trained token grid, by the head's own rule."""
    return sampler.sample(net, noise, labels, null, token_grid=grid, blend=blend)


def one_step(net, base, noise, t: float, labels, picture=None, scale: int = 1):
    """The estimate of the image at the pixels of ``picture``: tokens from the base size, centres, continuous noise.

    Fields are joined as in :meth:`~pixnerd_plugin.sampling.FieldTrajectory.decode`.
    """
    picture = base if picture is None else picture
    at = (torch.arange(base.shape[-1] * scale) + 0.5) / scale - 0.5
    pixels = t * picture + (1 - t) * continuous_noise(noise, at, at)
    x = t * base + (1 - t) * noise
    s, _ = net.encode(x, torch.full((len(base),), t), labels)
    with aligned(net, 'centers'):
        return pixels + (1 - t) * net.decode(s, pixels, net.grid_of(x), blend=BLEND)


def paper_step(net, picture, noise, t: float, labels, patches: int):
    """The same by the paper's rule: tokens from the large noisy picture, corners, hard borders, independent noise."""
    x = t * picture + (1 - t) * noise
    with aligned(net, 'corners'):
        return x + (1 - t) * net(x, torch.full((len(x),), t), labels, token_grid=(patches, patches))


def finer_noise(noise, scale: int):
    """Independent noise of the finer picture that, resampled by nearest neighbour, is ``noise``: the same picture."""
    fine = torch.randn(*noise.shape[:2], noise.shape[2] * scale, noise.shape[3] * scale)
    fine[..., ::scale, ::scale] = noise
    return fine


def upsample(images, scale: int):
    return F.interpolate(images, scale_factor=scale, mode='bicubic')


def repeat(images, factor: int):
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def psnr(images, originals) -> float:
    """Mean over pictures of the peak signal to noise ratio, in dB; pixels are cut to [-1, 1]."""
    error = (images.clamp(-1, 1) - originals).square().flatten(1).mean(1)
    return (10 * (4 / error).log10()).mean().item()


def edge_share(images, originals) -> float:
    """How much of the originals' edges is there: the slope of the pictures' steps on the originals', all axes pooled.

    1 is as sharp as the originals, 0 has none of their edges. A blur lowers it: an edge spread over ``n`` steps counts
    ``1 / n``. Grain has no part in it, as its steps are independent of the originals'; nor have edges elsewhere.
    """
    shared = total = 0.0
    for axis in (2, 3):
        steps = originals.diff(dim=axis)
        shared += (images.clamp(-1, 1).diff(dim=axis) * steps).sum().item()
        total += steps.square().sum().item()
    return shared / total
