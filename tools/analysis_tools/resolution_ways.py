"""Ways of drawing larger than trained, and measures of what comes out. Pictures are ``(B, 3, H, W)`` in [-1, 1]."""

import torch
import torch.nn.functional as F

from pixnerd_plugin.functional.noise import continuous_noise
from pixnerd_plugin.functional.positions import pixel_positions


def paper_sample(net, sampler, noise, labels, null, scale: int):
    """The paper's way: tokens from the large noisy picture at every step, corners, noise of its own in every pixel."""
    patches = noise.shape[-1] // net.patch_size
    alignment, net.head.alignment = net.head.alignment, 'corners'
    try:
        return fixed_tokens(net, sampler, finer_noise(noise, scale), labels, null, (patches, patches))
    finally:
        net.head.alignment = alignment


def fixed_tokens(net, sampler, noise, labels, null, grid: tuple[int, int], blend: float = 0.0):
    """Sample at the size of ``noise`` with the trained token grid, by the head's own rule."""
    return sampler.sample(net, noise, labels, null, token_grid=grid, blend=blend)


def one_step(net, base, noise, t: float, labels, picture=None, scale: int = 1):
    """The estimate of the image at the pixels of ``picture``: tokens from the base size, centres, continuous noise."""
    picture = base if picture is None else picture
    at = (torch.arange(base.shape[-1] * scale) + 0.5) / scale - 0.5
    pixels = t * picture + (1 - t) * continuous_noise(noise, at, at)
    positions = pixel_positions(net.patch_size * scale, net.patch_size, 'centers')
    times = torch.full((len(base),), t)
    x = t * base + (1 - t) * noise
    s, _ = net.encode(x, times, labels)
    velocity = net.decode(s, pixels, net.grid_of(x), (positions, positions))
    return pixels + (1 - t) * velocity


def paper_step(net, picture, noise, t: float, labels, patches: int):
    """The same by the paper's rule: tokens from the large noisy picture, corners, independent noise."""
    x = t * picture + (1 - t) * noise
    positions = pixel_positions(picture.shape[-1] // patches, net.patch_size, 'corners')
    times = torch.full((len(picture),), t)
    grid = (patches, patches)
    s, _ = net.encode(x, times, labels, grid)
    return x + (1 - t) * net.decode(s, x, grid, (positions, positions))


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
