import numpy as np
from PIL import Image

from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.images import image_grid, to_uint8
from tests.training import load, train


def test_one_grid_is_of_the_average_and_one_of_the_raw_weights(tmp_path):
    options = dict(train_cfg__max_iters=2, optim_wrapper__optimizer__lr=0.5, param_scheduler=None)
    model = train(tmp_path, **options, default_hooks__samples__raw=True).model.eval()

    def grid():
        generators = image_generators(range(3))
        noise = draw_noise(generators, (3, 16, 16))
        return image_grid(to_uint8(model.sample(dict(label=[0, 1, 2]), noise, generators=generators)), None)

    averaged, raw = (np.asarray(Image.open(tmp_path / f'samples/iter_2{suffix}.png')) for suffix in ('', '_raw'))
    assert np.array_equal(raw, grid())
    model.load_state_dict(load(tmp_path / 'iter_2.pth')['state_dict'])
    assert np.array_equal(averaged, grid())
    assert not np.array_equal(averaged, raw)
