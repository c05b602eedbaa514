"""Held-out numbers during training, which must not change what is learned."""

import itertools
import json
import logging
import shutil
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image

from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.engine.hooks import BestCheckpointHook
from pixnerd_plugin.engine.logs import read_scalars
from pixnerd_plugin.engine.validation import LossByTime, ValidationLoop, is_drawn, times
from pixnerd_plugin.evaluation import FeatureExtractor, Features, FrechetDistance
from pixnerd_plugin.evaluation.metrics import Statistics, frechet_distance
from pixnerd_plugin.models.frozen import FrozenModel
from pixnerd_plugin.registry import METRICS, MODELS
from tests.training import CONFIG, assert_same_training_state, load, train


@MODELS.register_module()
class ThreeFeatures(FeatureExtractor):
    """The mean colours."""

    name, dim = 'mean colour', 3

    def __init__(self):
        self.network = FrozenModel(torch.nn.Identity)

    def __call__(self, images):
        return Features(images.float().mean((2, 3)) / 255)


HELD_OUT = dict(
    val_dataloader=dict(
        batch_size=7,
        num_workers=0,
        dataset=dict(type='DigitsDataset', size=16, split='test', indices=20, pipeline=[dict(type='PackInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    ),
    val_cfg=dict(type='ValidationLoop'),
    val_evaluator=[dict(type='LossByTime'), dict(type='FrechetDistance', feature_extractor=dict(type='ThreeFeatures'))],
    train_cfg__val_interval=2,
    custom_hooks=[dict(type='BestCheckpointHook', save_best='loss_flow')],
    visualizer__vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
)
TRAINED = dict(optim_wrapper__optimizer__lr=0.1)


@pytest.fixture(scope='module')
def validated(tmp_path_factory):
    """The work folder of a run with validation."""
    work_dir = tmp_path_factory.mktemp('validated')
    train(work_dir, **TRAINED, **HELD_OUT)
    return work_dir


def held_out(work_dir):
    scalars = read_scalars(work_dir, strict=True)
    found = {step: {k: v for k, v in entry.items() if k.startswith('val/')} for step, entry in scalars.items()}
    return {step: entry for step, entry in found.items() if entry}


def test_validation_changes_nothing_in_training(tmp_path, validated):
    train(tmp_path, **TRAINED)
    assert_same_training_state(load(tmp_path / 'iter_6.pth'), load(validated / 'iter_6.pth'))
    assert (tmp_path / 'noise_0.txt').read_text() == (validated / 'noise_0.txt').read_text()


def test_held_out_numbers_are_logged_at_their_iterations(validated):
    found = held_out(validated)
    assert list(found) == [2, 4, 6]
    for entry in found.values():
        assert {'val/loss_flow', 'val/frechet_distance', 'val/frechet_floor'} < entry.keys()
        assert any(key.startswith('val/loss_flow_by_time/') for key in entry)
    assert found[6]['val/loss_flow'] < found[2]['val/loss_flow']
    assert len({entry['val/frechet_floor'] for entry in found.values()}) == 1


def test_tensorboard_has_them_beside_those_of_training(validated):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    (events,) = validated.glob('*/vis_data/events*')
    found = accumulator.EventAccumulator(str(events)).Reload()
    assert [event.step for event in found.Scalars('val/loss_flow')] == [2, 4, 6]
    assert [event.step for event in found.Scalars('loss_flow')] == list(range(1, 7))
    logged = [entry['val/loss_flow'] for entry in held_out(validated).values()]
    assert [event.value for event in found.Scalars('val/loss_flow')] == pytest.approx(logged)


def test_wandb_gets_them_too(tmp_path, monkeypatch):
    wandb = MagicMock()
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    backends = dict(visualizer__vis_backends=[dict(type='LocalVisBackend'), dict(type='WandbVisBackend')])
    train(tmp_path, train_cfg__max_iters=2, **HELD_OUT | backends)
    logged = [call.args[0] for call in wandb.log.call_args_list]
    (expected,) = held_out(tmp_path).values()
    (found,) = [entry for entry in logged if 'val/loss_flow' in entry]
    assert {name: found[name] for name in expected} == expected
    assert [entry['iter'] for entry in logged if 'loss' in entry] == [1, 2]


def test_the_loss_is_that_of_the_averaged_weights_with_fixed_noise_and_times(tmp_path, validated):
    runner = train(tmp_path, **TRAINED, **HELD_OUT, val_dataloader__batch_size=20)
    state = load(tmp_path / 'iter_6.pth')['state_dict']
    model = runner.model.eval()
    model.load_state_dict(state)
    (batch,) = runner.val_dataloader
    data = model.data_preprocessor(batch)
    noise = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(20)])
    t = times(model.loss, range(20))
    with torch.no_grad():
        x = t.view(-1, 1, 1, 1) * data['inputs'] + (1 - t.view(-1, 1, 1, 1)) * noise
        velocity = model.backbone(x, t, data['data_samples']['label'])
        loss = (velocity - (data['inputs'] - noise)).square().mean().item()
    assert held_out(tmp_path)[6]['val/loss_flow'] == pytest.approx(loss, rel=1e-5)
    # In batches of 7 it is the same.
    assert held_out(validated)[6]['val/loss_flow'] == pytest.approx(loss, rel=1e-5)


def test_a_resumed_run_validates_as_the_uninterrupted_one(tmp_path, validated):
    train(tmp_path, stop_at=4, **TRAINED, **HELD_OUT)
    # As after a kill between the checkpoint and the validation of iteration 4.
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(''.join(line for line in lines if not ('val/' in line and json.loads(line)['step'] == 4)))
    train(tmp_path, resume=True, **TRAINED, **HELD_OUT)
    assert held_out(tmp_path) == held_out(validated)
    assert_same_training_state(load(tmp_path / 'iter_6.pth'), load(validated / 'iter_6.pth'))
    best, other = load(tmp_path / 'best.pth'), load(validated / 'best.pth')
    assert best['meta']['iter'] == other['meta']['iter']


def test_the_best_weights_are_kept(tmp_path, validated):
    values = {step: entry['val/loss_flow'] for step, entry in held_out(validated).items()}
    best = load(validated / 'best.pth')
    assert best['meta']['iter'] == min(values, key=values.get)
    assert 'optimizer' not in best
    averaged = load(validated / f'iter_{best["meta"]["iter"]}.pth')['state_dict']
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in best['state_dict'].items())
    wrong = HELD_OUT | dict(custom_hooks=[dict(type='BestCheckpointHook', save_best='accuracy')])
    with pytest.raises(
        ValueError, match=r"'accuracy' is no metric; there are: frechet_distance, frechet_floor, loss_fl"
    ):
        train(tmp_path, **wrong)
    assert not list(tmp_path.glob('*.pth'))  # before anything was trained


def test_a_metric_that_does_not_tell_its_names_is_asked_in_the_first_validation(tmp_path):
    @METRICS.register_module(force=True)
    class Silent(LossByTime):
        names = property()

    hooks = [dict(type='BestCheckpointHook', save_best='los_flow')]
    with pytest.raises(ValueError, match=r"save_best='los_flow' is no metric; there are: loss_flow"):
        train(tmp_path, **HELD_OUT | dict(custom_hooks=hooks, val_evaluator=[dict(type='Silent')]))
    assert (tmp_path / 'iter_2.pth').exists()


def test_a_validation_that_a_kill_cut_off_at_the_end_is_made_up(tmp_path, validated):
    shutil.copytree(validated, tmp_path, dirs_exist_ok=True)
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = log.read_text().splitlines(keepends=True)
    assert '"val/' in lines[-1]
    log.write_text(''.join(lines[:-1]) + lines[-1][:20])
    (tmp_path / 'best.pth').unlink()
    for _ in range(2):  # the second time, nothing is missing
        train(tmp_path, resume=True, **TRAINED, **HELD_OUT)
        assert held_out(tmp_path) == held_out(validated)
    assert load(tmp_path / 'best.pth')['meta']['iter'] == 6
    logs = tmp_path.glob('*/vis_data/scalars.json')
    assert sum('"val/' in line for log in logs for line in log.read_text().splitlines()) == 3


def test_one_of_every_two_pictures_has_a_sample_on_all_ranks_alike(tmp_path, monkeypatch):
    assert all(is_drawn(number) != is_drawn(number + 1) for number in range(0, 1000, 2))
    for ranks in range(1, 17):
        for rank in range(ranks):
            own = [is_drawn(number) for number in range(rank, 100 * ranks, ranks)]
            assert 40 <= sum(own) <= 60, (rank, ranks)
    found = []

    @METRICS.register_module(force=True)
    class Drawn(LossByTime):
        needs_samples = True

        def process(self, data_batch, data_samples):
            super().process(data_batch, data_samples)
            found.extend((entry['number'], 'sample' in entry) for entry in data_samples)

    monkeypatch.setattr('pixnerd_plugin.engine.validation.get_world_size', lambda: 2)
    monkeypatch.setattr('pixnerd_plugin.engine.validation.get_rank', lambda: 1)
    train(tmp_path, train_cfg__max_iters=1, **HELD_OUT | dict(val_evaluator=[dict(type='Drawn')]))
    assert found == [(number, is_drawn(number)) for number in range(1, 41, 2)]


def test_times_are_spread_as_in_training():
    loss = MODELS.build(dict(type='FlowMatchREPALoss', timeshift=2.0, time_std=1.5, time_mean=0.3))
    torch.manual_seed(0)
    drawn = loss.draw_time(20000, torch.device('cpu')).sort().values
    spread = times(loss, range(2000)).sort().values
    torch.testing.assert_close(spread, drawn[5::10], atol=0.02, rtol=0)


def test_the_mean_and_the_bins_are_over_all_pictures():
    metric = LossByTime(time_bins=2)
    for t, loss in ((0.1, 1.0), (0.3, 3.0), (1.0, 8.0)):
        metric.process(None, [dict(number=0, t=t, loss_flow=loss)])
    found = metric.evaluate(3)
    assert found == {'loss_flow': 4.0, 'loss_flow_by_time/0.25': 2.0, 'loss_flow_by_time/0.75': 8.0}


def test_the_distance_and_its_floor_are_between_halves():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (12, 3, 4, 4), generator=generator, dtype=torch.uint8)
    samples = torch.randint(0, 256, (6, 3, 4, 4), generator=generator, dtype=torch.uint8)
    metric = FrechetDistance(dict(type='ThreeFeatures'))
    metric.prepare(12)
    entries = [dict(number=n, picture=pictures[n]) for n in range(12)]
    for n in range(0, 12, 2):
        entries[n]['sample'] = samples[n // 2]
    for part in itertools.batched(entries, 5) if hasattr(itertools, 'batched') else [entries[:5], entries[5:]]:
        metric.process(None, part)
    found = metric.evaluate(12)
    even, odd, drawn = (Statistics.of(ThreeFeatures()(x).pool) for x in (pictures[::2], pictures[1::2], samples))
    assert found['frechet_floor'] == pytest.approx(frechet_distance(even, odd))
    assert found['frechet_distance'] == pytest.approx(frechet_distance(drawn, odd))
    with pytest.raises(ValueError, match='has 7 pictures, and FrechetDistance in the 3 mean colour features needs at'):
        metric.prepare(7)


@pytest.mark.parametrize(
    ('option', 'line'),
    [
        ('val_cfg.sed=3', 'val_cfg.sed: ValidationLoop has no argument sed; did you mean seed?'),
        ('val_evaluator.0.type=LosByTime', 'val_evaluator.0.type=LosByTime is not known; did you mean LossByTime?'),
        ('val_dataloader.batchsize=3', 'val_dataloader.batchsize is not known; did you mean batch_size?'),
        ('val_dataloader.dataset.siez=3', 'DigitsDataset has no argument siez; did you mean size?'),
        ('train_cfg.val_intervall=3', 'no argument val_intervall; did you mean val_interval?'),
    ],
)
def test_misspelt_entries_are_named(option, line):
    with pytest.raises(ValueError, match=line.replace('?', r'\?')):
        load_config(CONFIG.parents[2] / 'mm_configs/pixnerd_digits.py', [option])


def test_a_full_disk_does_not_end_the_run(tmp_path, caplog):
    from pixnerd_plugin.engine.hooks import BestCheckpointHook

    hook = BestCheckpointHook()

    def full(*args, **options):
        raise OSError(28, 'No space left on device')

    hub = SimpleNamespace(runtime_info={}, update_info=lambda *a: pytest.fail('it was not saved'))
    runner = SimpleNamespace(
        message_hub=hub, hooks=[], work_dir=str(tmp_path), save_checkpoint=full, epoch=0, iter=3,
        logger=logging.getLogger('full'),
    )  # fmt: skip
    hook.after_val_epoch(runner, dict(loss_flow=1.0))
    assert 'CHECKPOINT NOT SAVED: best.pth' in caplog.text


@pytest.mark.parametrize('sampler', [dict(type='ResumableSampler'), dict(type='DefaultSampler', shuffle=True)])
def test_a_sampler_that_never_ends_or_shuffles_is_refused(tmp_path, sampler):
    options = HELD_OUT | dict(val_dataloader=HELD_OUT['val_dataloader'] | dict(sampler=sampler))
    with pytest.raises(ValueError, match=rf'{sampler["type"]}; set val_dataloader.sampler=dict'):
        train(tmp_path, **options)


def test_classes_other_than_those_of_training_are_refused(tmp_path):
    for name in ('train/ant', 'train/bee', 'val/bee'):
        (tmp_path / name).mkdir(parents=True)
        Image.new('RGB', (16, 16)).save(tmp_path / name / 'a.png')
    pictures = dict(type='ImageFolder', pipeline=[dict(type='LoadRGB'), dict(type='PackInputs')])
    options = HELD_OUT | dict(
        train_dataloader__dataset=pictures | dict(_delete_=True, data_root=str(tmp_path / 'train')),
        val_dataloader=HELD_OUT['val_dataloader'] | dict(dataset=pictures | dict(data_root=str(tmp_path / 'val'))),
        val_evaluator=[dict(type='LossByTime')],
    )
    with pytest.raises(ValueError, match=r'classes of val_dataloader are not those of train_dataloader \(ant\)'):
        train(tmp_path / 'work', **options)
    (tmp_path / 'val/ant').mkdir()
    train(tmp_path / 'work', **options, train_cfg__max_iters=1)


class Dying:
    """A loader of ten batches, whose worker dies before the fifth, so many times."""

    num_workers, _iterator = 1, None

    def __init__(self, times):
        self.times = times

    def __iter__(self):
        if self._iterator is None:  # as with persistent workers
            self._iterator = self.batches()
        return self._iterator

    def batches(self):
        for number in range(10):
            if number == 4 and self.times:
                self.times -= 1
                raise RuntimeError('DataLoader worker (pid 1) is killed by signal: Killed.')
            yield number


def test_workers_of_a_validation_that_die_are_replaced(monkeypatch):
    logged = []
    monkeypatch.setattr('pixnerd_plugin.engine.validation.print_log', lambda message, *_: logged.append(message))
    loop = SimpleNamespace(dataloader=Dying(times=3))
    assert list(ValidationLoop._batches(loop)) == list(range(10))
    assert [message.startswith('DATA WORKER DIED in validation') for message in logged] == [True] * 3
    loop = SimpleNamespace(dataloader=Dying(times=4))
    with pytest.raises(ValueError, match=r'died 4 times in a row.*val_dataloader.num_workers'):
        list(ValidationLoop._batches(loop))


def test_what_is_not_finite_is_never_the_best(tmp_path):
    hub = SimpleNamespace(runtime_info={}, get_info=lambda key: hub.runtime_info[key])
    hub.update_info = hub.runtime_info.__setitem__
    saved = []
    runner = SimpleNamespace(
        message_hub=hub, hooks=[], work_dir=str(tmp_path), iter=1, epoch=0, logger=logging.getLogger('test')
    )
    runner.save_checkpoint = lambda *args, **kwargs: saved.append(hub.runtime_info.copy())
    hook = BestCheckpointHook()
    for value in (float('nan'), 2.0, float('nan'), 1.0):
        hook.after_val_epoch(runner, dict(loss_flow=value))
    assert len(saved) == 2
    assert hub.runtime_info == dict(best_loss_flow=1.0)
