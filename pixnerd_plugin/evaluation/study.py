"""Small studies: train variants of a config with several seeds, and measure all of them in the same way."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner

from pixnerd_plugin.engine.config import load_config
from pixnerd_plugin.engine.preemption import EXIT_REQUEUE
from pixnerd_plugin.engine.resume import find_checkpoint
from pixnerd_plugin.formats.atomic import atomic_path
from pixnerd_plugin.models.flops import training_flops
from pixnerd_plugin.registry import MODELS

from .classifier import ClassifierFeatures
from .features import Features
from .generate import draw_images, image_size_of, load_model
from .pictures import Images, TensorImages, load_all, open_images, to_tensor
from .quality import compare, extract, require_enough

NUM_KNOWN = 2000
NUM_HELD_OUT = 500
BATCH = 100


@dataclass
class Scorer:
    """Scores samples with a classifier of the data's classes, against held-out pictures in its features."""

    extractor: ClassifierFeatures
    test: Images
    """Held-out pictures, at most ``NUM_KNOWN``."""
    known: Features
    floor: dict[str, float]
    """The scores of real training pictures, as many as samples will be drawn, for comparison."""


def split_of(config: Any, split: str) -> str:
    """Where the pictures of a config's data set are; ``split`` is ``'train'`` or ``'test'``."""
    dataset = config.train_dataloader.dataset
    if dataset.type == 'DigitsDataset':
        return f'digits:{split}'
    return str(Path(dataset.data_root).parent / split)


def make_scorer(config: Any, classifier: str | Path, num: int, seed: int = 0) -> Scorer:
    """Load the classifier and measure the real pictures of a config's data.

    Args:
        config: config that names the data.
        classifier: file written by ``tools/train_classifier.py``.
        num: number of samples that will be scored.
        seed: seed for choosing the training pictures of ``floor``.
    """
    extractor = ClassifierFeatures(classifier)
    size = image_size_of(config)
    train, test = (open_images(split_of(config, split), size) for split in ('train', 'test'))
    require_enough(num, extractor, 'the sample')
    generator = torch.Generator().manual_seed(seed)
    real = train.subset(torch.randperm(len(train), generator=generator)[:num].tolist())
    test = test.subset(torch.randperm(len(test), generator=generator)[:NUM_KNOWN].tolist())
    known = _features(test, extractor)
    return Scorer(extractor, test, known, _score(real, extractor, known))


def train_variant(path: str, options: Mapping[str, Any], work_dir: Path, seed: int) -> Path:
    """Train a config with ``options`` (dotted names to values), or find it trained; return the checkpoint.

    Raises:
        SystemExit: if it was asked to stop (SIGTERM); the next call goes on from what was saved.
    """
    config = load_config(path, options)
    found = find_checkpoint(work_dir)
    if found is not None and found.stem == f'iter_{config.train_cfg.max_iters}':
        return found
    config.work_dir = str(work_dir)
    config.randomness = dict(config.get('randomness', {}), seed=seed)
    config.train_dataloader.sampler.seed = seed
    # mmengine keeps one logger, message hub and visualizer per name.
    config.experiment_name = f'{work_dir.parent.name}_{work_dir.name}_{time.time_ns()}'
    if found is not None:
        config.resume, config.load_from = True, str(found)
    runner = Runner.from_cfg(config)
    runner.train()
    if getattr(runner.train_loop, 'preempted', False):
        raise SystemExit(EXIT_REQUEUE)
    trained = find_checkpoint(work_dir)
    assert trained is not None
    return trained


def measure_variant(
    path: str, options: Mapping[str, Any], checkpoint: Path, scorer: Scorer, num: int
) -> dict[str, Any]:
    """Measure a variant with its EMA weights: size, cost, held-out losses, scores of samples.

    ``gflops`` are those of a forward and backward pass over one picture. The held-out losses use the same pictures,
    times and noise for every variant.
    """
    config = load_config(path, options)
    size = image_size_of(config)
    model = load_model(config, str(checkpoint), 'cpu')
    result: dict[str, Any] = dict(
        parameters=sum(p.numel() for p in model.backbone.parameters()), gflops=training_gflops(config)
    )
    result |= held_out_losses(config, model.backbone, checkpoint, scorer.test)
    result |= score_samples(model, scorer, num, size)
    return result


def training_gflops(config: Any) -> float:
    """GFLOPs of a forward and backward pass over one picture, attention included."""
    with torch.device('meta'):
        return training_flops(MODELS.build(config.model.backbone), image_size_of(config)) / 1e9


@torch.no_grad()
def held_out_losses(config: Any, net: Any, checkpoint: Path, test: Images) -> dict[str, float]:
    """The training losses on held-out pictures, without dropping conditions."""
    loss = MODELS.build(dict(config.model.loss)).eval()
    state = torch.load(checkpoint, map_location='cpu', weights_only=True)['state_dict']
    projector = {n.removeprefix('loss.projector.'): w for n, w in state.items() if n.startswith('loss.projector.')}
    loss.projector.load_state_dict(projector)
    images, labels = load_all(test)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(images), generator=generator)[:NUM_HELD_OUT]
    t = torch.randn(len(chosen), generator=generator).sigmoid()
    noise = torch.randn(len(chosen), *images.shape[1:], generator=generator)
    totals: dict[str, float] = {}
    for part in torch.arange(len(chosen)).split(BATCH):
        batch = images[chosen[part]].float() / 127.5 - 1
        keep = torch.zeros(len(part), dtype=torch.bool)
        cond = labels[chosen[part]]
        losses = loss(net, batch, cond, null_cond=cond, noise=noise[part], t=t[part], drop_mask=keep)
        for name, value in losses.items():
            key = f'held_out_{name.removeprefix("loss_")}'
            totals[key] = totals.get(key, 0.0) + value.item() * len(part) / len(chosen)
    return totals


def score_samples(model: Any, scorer: Scorer, num: int, size: tuple[int, int], seed: int = 0) -> dict[str, float]:
    """Draw ``num`` pictures, with the classes taking turns, and score them."""
    labels = torch.arange(num) % len(scorer.extractor.description['class_names'])
    pictures = []
    for part in torch.arange(num).split(BATCH):
        drawn = draw_images(model, dict(label=labels[part].tolist()), [seed + int(number) for number in part], size)
        pictures.append(to_tensor(drawn))
    return _score(TensorImages('samples', torch.cat(pictures), labels), scorer.extractor, scorer.known)


def _score(pictures: Images, extractor: ClassifierFeatures, known: Features) -> dict[str, float]:
    features = _features(pictures, extractor)
    result = compare(features, known, extractor)
    assert features.logits is not None
    assert pictures.labels is not None
    right = features.logits.argmax(1) == pictures.labels
    return dict(
        distance=result['Frechet distance'],
        precision=result['precision'],
        recall=result['recall'],
        accuracy=right.double().mean().item(),
    )


def _features(pictures: Images, extractor: ClassifierFeatures) -> Features:
    features = extract(pictures, extractor, BATCH)
    assert features is not None  # a study runs in one process
    return features


def curves(work_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """The logged losses ``loss_flow`` and ``loss_repa`` of a run, as (step, value)."""
    found: dict[str, dict[int, float]] = {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            for name in ('loss_flow', 'loss_repa'):
                if name in entry:
                    found.setdefault(name, {})[entry['step']] = entry[name]
    return {name: sorted(points.items()) for name, points in found.items()}


def save_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + '\n')
