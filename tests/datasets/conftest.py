from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20), **kwargs) -> Path:
    """Write a small random (width, height) picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)
    return path


@pytest.fixture
def picture():
    return save_image


@pytest.fixture
def class_folder(tmp_path):
    """Twelve pictures in three classes."""
    for i in range(12):
        save_image(tmp_path / 'data' / f'class{i % 3}' / f'{i:02d}.png', seed=i)
    return tmp_path / 'data'


@pytest.fixture
def log(caplog):
    """What mmengine's logger says, which does not propagate."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
