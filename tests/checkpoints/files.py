"""Small networks, and files of every kind that holds one."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pixnerd_plugin.checkpoints.layouts.published import to_published
from pixnerd_plugin.registry import MODELS

State = Mapping[str, Tensor]


def tiny_network(kind: str = 'class', seed: int = 0) -> nn.Module:
    """A network of some thousand parameters, ``'class'`` or ``'text'`` in the published variant, none of them zero."""
    torch.manual_seed(seed)
    condition = dict(num_classes=3) if kind == 'class' else dict(text_dim=6, text_length=5, text_depth=1)
    head = dict(type='NeuralFieldHead', width=4, depth=2, num_frequencies=4)
    head |= dict(coordinates='dct' if kind == 'class' else 'cosine')
    head |= dict(normalize='fc1_fc2_output' if kind == 'class' else 'fc1')
    net = MODELS.build(
        dict(type='PixNerdDiT', dim=16, depth=2, num_heads=2, patch_size=4, mlp_hidden=12, **condition, head=head)
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def tiny_inputs(net: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """``x, t, cond`` for a tiny network."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 12, generator=generator)
    cond = torch.tensor([0, 3]) if net.text_dim is None else torch.randn(2, 5, 6, generator=generator)
    return x, torch.tensor([0.2, 0.7]), cond


def tiny_projector() -> dict[str, Tensor]:
    """Tensors of a loss's projector, under its names."""
    return {
        name: tensor
        for i in (0, 2, 4)
        for name, tensor in ((f'{i}.weight', torch.randn(4, 4)), (f'{i}.bias', torch.randn(4)))
    }


def prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + name: tensor.clone() for name, tensor in state.items()}


def save_lightning(path: Path, ema: State, raw: State, projector: State) -> Path:
    """As the release's trainer writes them: EMA, raw weights and projector, and the optimiser's state."""
    state = prefixed('ema_denoiser.', to_published(ema)) | prefixed('denoiser.', to_published(raw))
    state |= prefixed('diffusion_trainer.proj.0.', projector)
    optimizer = dict(state={0: dict(exp_avg=torch.randn(3), step=torch.tensor(7.0))}, param_groups=[dict(lr=1e-4)])
    torch.save(dict(epoch=3, global_step=70, state_dict=state, optimizer_states=[optimizer], loops={}), path)
    return path


def save_mmengine(path: Path, ema: State, raw: State, projector: State, meta: dict | None = None) -> Path:
    """As our training writes them: mmengine's EMA hook puts the averages in ``state_dict``."""
    state = prefixed('backbone.', ema) | prefixed('loss.projector.', projector)
    swapped = {'steps': torch.tensor(70), **prefixed('module.backbone.', raw)}
    torch.save(dict(meta=dict(iter=70, pixnerd=meta or {}), state_dict=state, ema_state_dict=swapped), path)
    return path


def save_diffusers(folder: Path, ema: State, raw: State) -> Path:
    (folder / 'transformer').mkdir(parents=True)
    state = prefixed('ema_denoiser.', to_published(ema)) | prefixed('denoiser.', to_published(raw))
    save_file(state, folder / 'transformer/diffusion_pytorch_model.safetensors')
    return folder


def same(a: State, b: State) -> bool:
    """Whether two states have the same names, and tensors equal to the last bit and in dtype."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)
