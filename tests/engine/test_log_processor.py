import json

import pytest

from pixnerd_plugin.models.flops import forward_flops
from tests.training import train


def test_throughput_and_flops_utilisation_follow_from_the_time_of_a_step(tmp_path):
    runner = train(tmp_path, train_cfg__max_iters=2, log_processor__peak_tflops=0.5)
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    last = json.loads(log.read_text().splitlines()[-1])
    assert last['images_per_second'] == pytest.approx(4 / last['time'], rel=1e-4)
    assert last['data_wait'] == pytest.approx(last['data_time'] / last['time'], rel=1e-4)
    operations = 3 * forward_flops(runner.model.backbone, 16) * last['images_per_second']
    assert last['mfu'] == pytest.approx(operations / 0.5e12, rel=1e-4)
