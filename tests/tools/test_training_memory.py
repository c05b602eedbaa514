"""The memory of a training step, counted without running it."""

import runpy

import pytest

from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.registry import MODELS
from tests.training import CONFIG, ROOT

DISTILLED = {
    'model.backbone.step_end': True,
    'model.loss.type': 'MeanFlowLoss',
    'model.loss.velocity_teacher': dict(type='FrozenBackbone', checkpoint='nowhere.pth', dtype='bfloat16'),
}


@pytest.fixture(scope='module')
def count():
    tool = runpy.run_path(str(ROOT / 'tools/analysis_tools/training_memory.py'))

    def count(batch, **options):
        return tool['count_step'](load_config(CONFIG, {'train_dataloader.batch_size': batch, **options}))

    return count


def test_each_part_has_its_bytes_and_the_passes_grow_with_the_batch(count):
    one, two = count(16, **DISTILLED), count(32, **DISTILLED)
    net = MODELS.build({**load_config(CONFIG).model.backbone.to_dict(), 'step_end': True})
    parameters = sum(p.numel() for p in net.parameters())
    end = sum(p.numel() for p in net.step_embed.parameters())
    buffers = sum(b.nbytes for b in net.buffers())
    assert one['weights'] == 4 * parameters + buffers
    assert one['average of the weights'] == 4 * parameters
    assert one['gradients'] == pytest.approx(4 * parameters, rel=0.01)  # and tables that are kept from call to call
    assert one['network that is distilled'] == 2 * (parameters - end) + buffers
    assert one['AdamW, state'] == pytest.approx(8 * parameters, rel=0.01)  # and a count of its steps
    assert 1.5 < two['passes, at their most'] / one['passes, at their most'] < 2.2
    assert one['peak'] >= sum(one.values()) - one['peak']


def test_an_average_on_the_cpu_takes_none_and_random_densities_are_refused(count):
    assert count(4, **{'default_hooks.ema.device': 'cpu'})['average of the weights'] == 0
    with pytest.raises(ValueError, match=r'--cfg-options model\.loss\.max_density=1'):
        count(4, **{'model.loss.max_density': 2})
