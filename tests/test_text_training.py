"""Text to image from a folder of captioned pictures, as mm_configs/pixnerd_t2i_tiny.py does it."""

import numpy as np
import torch
from mmengine.runner import Runner
from PIL import Image

import pixnerd_plugin.training  # noqa: F401
from pixnerd_plugin import load_backbone
from pixnerd_plugin.cli import load_config
from pixnerd_plugin.models.conditioners import Qwen3TextEncoder
from tests.training import DATA, ROOT


def test_a_folder_of_captioned_pictures_trains(tmp_path):
    rng = np.random.default_rng(0)
    captions = {'red': 'a red square\nrouge', 'green': '緑', 'blue': 'a blue square 🟦', 'nothing': None}
    (tmp_path / 'pictures').mkdir()
    for name, caption in captions.items():
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / 'pictures' / f'{name}.png')
        if caption:
            (tmp_path / 'pictures' / f'{name}.txt').write_text(caption, encoding='utf-8')
    options = {
        'model.conditioner.model': str(DATA / 'qwen3_tiny'),
        'train_dataloader.dataset.data_root': str(tmp_path / 'pictures'),
        'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': 2,
    }
    config = load_config(ROOT / 'mm_configs/pixnerd_t2i_tiny.py', options)
    config.work_dir, config.experiment_name = str(tmp_path / 'work'), 'test_text'
    Runner.from_cfg(config).train()

    net = load_backbone(tmp_path / 'work/iter_2.pth')
    assert net.text_dim == 40
    prompts = Qwen3TextEncoder(DATA / 'qwen3_tiny', net.text_length, 'float32')(['a red square', '緑'])
    with torch.no_grad():
        # After two steps the velocity is hardly above zero; what the head reads must depend on the prompt.
        _, s = net(torch.zeros(2, 3, 32, 32), torch.zeros(2), prompts, return_tokens=True)
    assert not torch.allclose(s[0], s[1])
