"""Held-out numbers during training: the losses on pictures that are not trained on, from the averaged weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import ValLoop
from torch import Tensor

from pixnerd_plugin.datasets.visits import seeded
from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.functional.time import shift_time
from pixnerd_plugin.images import to_uint8
from pixnerd_plugin.registry import LOOPS, METRICS

from .hooks import EMAHook
from .optim import Bf16OptimWrapper
from .workers import BROKEN, prepare_workers, worker_died

# Multiples of it, without their whole part, spread evenly over [0, 1) however many there are (Weyl, 1916).
_GOLDEN = (5**0.5 - 1) / 2
_MAX_WORKER_RESTARTS = 3


@LOOPS.register_module()
class ValidationLoop(ValLoop):
    """Measure the losses of held-out pictures with the averaged (EMA) weights, always with the same noise and times.

    Picture ``n`` has the noise of seed ``seed + n`` and the ``n``-th of times that are spread as those drawn in
    training, so the mean compares with the training loss, and two validations differ by the weights alone. No condition
    is dropped. Training goes on as if nothing had happened: random numbers, gradients and weights are as before.

    The metrics get one dict a picture: its ``number``, its time ``t`` and each loss term. If a metric has
    ``needs_samples``, also its ``picture`` (3, H, W), uint8, and one of every two a ``sample`` drawn from the same
    condition.

    Metrics with a method ``names(model)``, which returns the names of what they will measure or None, let a wrong name
    in the config be found at the start.

    Args:
        runner, dataloader, evaluator: as for mmengine's ``ValLoop``. The data's sampler must be mmengine's
            ``DefaultSampler`` with ``shuffle=False``.
        seed: seed of the first picture's noise.

    Raises:
        ValueError: if the sampler is another, or the held-out classes are not those of training.
    """

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, seed: int = 0):
        super().__init__(runner, dataloader, evaluator)
        sampler = self.dataloader.sampler
        # An endless one, as that of training, would never end the validation.
        if not isinstance(sampler, DefaultSampler) or sampler.shuffle:
            raise ValueError(
                'validation needs each held-out picture once, in order, not from a '
                f'{"shuffling " if getattr(sampler, "shuffle", False) else ""}{type(sampler).__name__}; set '
                "val_dataloader.sampler=dict(type='DefaultSampler', shuffle=False)"
            )
        _check_classes(runner.train_dataloader, self.dataloader)
        prepare_workers(self.dataloader)
        self.seed = seed
        for metric in self.evaluator.metrics:
            if hasattr(metric, 'prepare'):
                metric.prepare(len(self.dataloader.dataset))
        self._draws = any(getattr(metric, 'needs_samples', False) for metric in self.evaluator.metrics)

    def metric_names(self) -> set[str] | None:
        """The names of all that will be measured; None if a metric does not tell them before."""
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model
        told: set[str] = set()
        for metric in self.evaluator.metrics:
            names = metric.names(model) if hasattr(metric, 'names') else None
            if names is None:
                return None
            told.update(names)
        return told

    @torch.no_grad()
    def run(self) -> dict[str, float]:
        runner = self.runner
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        ema = next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)
        gpus = [model.device] if model.device.type == 'cuda' else []
        autocast = torch.autocast(
            model.device.type, torch.bfloat16, enabled=isinstance(runner.optim_wrapper, Bf16OptimWrapper)
        )
        runner.call_hook('before_val')
        runner.call_hook('before_val_epoch')
        training = model.training
        model.eval()
        with seeded((self.seed,)), torch.random.fork_rng(gpus), ema.applied() if ema else nullcontext():
            for gpu in gpus:
                torch.cuda.default_generators[gpu.index].manual_seed(self.seed)
            seen = 0
            for batch in self._batches():
                # DefaultSampler deals the pictures to the ranks in turn.
                count = len(batch['inputs'])
                numbers = [(seen + i) * get_world_size() + get_rank() for i in range(count)]
                seen += count
                with autocast:
                    measured = self._measure(model, model.data_preprocessor(batch), numbers)
                self.evaluator.process(measured, batch)
        model.train(training)
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        runner.call_hook('after_val_epoch', metrics=metrics)
        runner.call_hook('after_val')
        return metrics

    def _batches(self) -> Iterator[Any]:
        """The held-out batches; data workers that die are started again, at the batch that was due."""
        done = died = 0
        while died <= _MAX_WORKER_RESTARTS:
            # With persistent workers the loader would hand out its old iterator, of dead workers, again.
            self.dataloader._iterator = None if died else self.dataloader._iterator
            batches = iter(self.dataloader)
            try:
                for number, batch in enumerate(batches):
                    if number == done:
                        yield batch
                        done, died = done + 1, 0
                return
            except BROKEN as error:
                if not worker_died(batches, error):
                    raise
                died += 1
                print_log(f'DATA WORKER DIED in validation: {error or type(error).__name__}', 'current', logging.ERROR)
        raise ValueError(
            f'data workers of the validation died {died} times in a row; when memory is short, lower '
            'val_dataloader.num_workers or batch_size'
        )

    def _measure(self, model: Any, data: Any, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """What the metrics get of a batch, a dict for each picture."""
        images, conditions = data['inputs'], data['data_samples']
        # The losses take finer pictures than the network draws if the field is trained at several densities.
        density = getattr(model.loss, 'max_density', 1)
        base = F.interpolate(images, scale_factor=1 / density, mode='area') if density > 1 else images
        generators = image_generators([self.seed + number for number in numbers])
        noise = draw_noise(generators, base.shape[1:])
        terms = model.losses_per_image(images, conditions, noise.to(images.device), times(model.loss, numbers))
        terms = {name: values.float().cpu() for name, values in terms.items()}
        measured: list[dict[str, Any]] = [
            {'number': number, **{name: values[i].item() for name, values in terms.items()}}
            for i, number in enumerate(numbers)
        ]
        if self._draws:
            chosen = [i for i, number in enumerate(numbers) if is_drawn(number)]
            kept = {key: _pick(values, chosen) for key, values in conditions.items()}
            own = [generators[i] for i in chosen]
            samples = _to_uint8(model.sample(kept, noise[chosen], generators=own)) if chosen else base[:0]
            for entry, picture in zip(measured, _to_uint8(base), strict=True):
                entry['picture'] = picture
            for i, sample in zip(chosen, samples, strict=True):
                measured[i]['sample'] = sample
        return measured


@METRICS.register_module()
class LossByTime(BaseMetric):
    """The mean of each loss term, and its means in bins of t: ``loss_flow`` and ``loss_flow_by_time/0.05``, ...

    Args:
        time_bins: number of bins; 0 for none.
    """

    def __init__(self, time_bins: int = 10):
        super().__init__()
        if time_bins < 0:
            raise ValueError(f'LossByTime: time_bins must be at least 0, got {time_bins}')
        self.time_bins = time_bins

    def names(self, model: Any) -> list[str] | None:
        return getattr(model.loss, 'names', None)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        self.results += [
            {name: value for name, value in sample.items() if name == 't' or name.startswith('loss')}
            for sample in data_samples
        ]

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        names = [name for name in results[0] if name != 't']
        metrics = {name: _mean([result[name] for result in results]) for name in names}
        # A loss of one's own may tell no times.
        for index in range(self.time_bins if 't' in results[0] else 0):
            inside = [r for r in results if min(int(r['t'] * self.time_bins), self.time_bins - 1) == index]
            if inside:
                middle = (index + 0.5) / self.time_bins
                metrics |= {f'{name}_by_time/{middle:.3g}': _mean([r[name] for r in inside]) for name in names}
        return metrics


def is_drawn(number: int) -> bool:
    """Whether picture ``number`` has a sample: one of each pair, on every one of any number of ranks about half."""
    # Rank r has the pictures r, r + ranks, ...: the even ones would all be on the even ranks.
    pair, second = divmod(number, 2)
    return bool(second) == ((pair * _GOLDEN) % 1 >= 0.5)


def times(loss: Any, numbers: Sequence[int]) -> Tensor:
    """Times ``(B,)`` of pictures: quantiles of the distribution that ``loss`` draws from, the logit-normal's."""
    quantiles = torch.tensor([(0.5 + number * _GOLDEN) % 1 for number in numbers], dtype=torch.float64)
    logits = getattr(loss, 'time_mean', 0.0) + getattr(loss, 'time_std', 1.0) * torch.special.ndtri(quantiles)
    return shift_time(logits.sigmoid(), getattr(loss, 'timeshift', 1.0)).float()


def _check_classes(training: Any, held_out: Any) -> None:
    own, other = (
        (getattr(getattr(loader, 'dataset', None), 'metainfo', None) or {}).get('classes')
        for loader in (training, held_out)
    )
    if own is not None and other is not None and list(own) != list(other):
        named = ', '.join(sorted(set(map(str, own)) ^ set(map(str, other)))[:5]) or 'their order'
        raise ValueError(
            f'the classes of val_dataloader are not those of train_dataloader ({named}), so their labels would mean '
            'others; give both folders the same sub-folders, which may be empty'
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _pick(values: Any, chosen: list[int]) -> Any:
    return values[chosen] if isinstance(values, Tensor) else [values[i] for i in chosen]


def _to_uint8(images: Tensor) -> Tensor:
    """``(B, 3, H, W)`` in [-1, 1] to uint8 on the CPU."""
    return torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)
