"""A file as it was downloaded, trained or saved, in the loaders that a user has."""

import logging
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

# Before the host, whose checkout has a package of the same name.
from tests.checkpoints.files import save_lightning, save_mmengine
from tests.golden import network, read

from .host import (
    CLASS_NAMES,
    build_net,
    class_conditioning,
    import_host,
    randomize,
    require_host,
    save_net,
    text_encoder_tensors,
)

require_host()
import_host()

import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402

from comfy_nodes.nodes import (  # noqa: E402
    PixNerdClassLabel,
    PixNerdDecode,
    PixNerdModelLoader,
    PixNerdResolution,
    PixNerdTextEncode,
)
from comfy_nodes.text_encoder import load_text_encoder  # noqa: E402
from pixnerd_plugin.checkpoints.convert import convert  # noqa: E402
from pixnerd_plugin.checkpoints.layouts.published import to_published  # noqa: E402
from pixnerd_plugin.models.backbones import PixNerdDiT  # noqa: E402
from pixnerd_plugin.sampling import AdamsFlowSampler  # noqa: E402

from .native import SHIFT, error, noise, reference, sample  # noqa: E402


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Our loader on a file of ``tmp_path``."""
    monkeypatch.setattr(folder_paths, 'get_full_path_or_raise', lambda folder, name: str(tmp_path / name))
    return lambda name, dtype='default': PixNerdModelLoader.execute(name, dtype).args


def written(net, path):
    """A network in the layout that a file's name stands for."""
    state = net.state_dict()
    metadata = dict(architecture=net.architecture(), class_names=CLASS_NAMES)
    if path.suffix == '.ckpt':
        return save_lightning(path, state, {name: tensor + 1 for name, tensor in state.items()}, {})
    if path.suffix == '.pth':
        return save_mmengine(path, state, {name: tensor + 1 for name, tensor in state.items()}, {}, metadata)
    if path.stem == 'published':
        save_file({f'ema_denoiser.{name}': tensor for name, tensor in to_published(state).items()}, path)
    elif path.stem == 'layer':
        # As a program saves it that knows nothing of the name on disk.
        save_file({name.replace('.positions', '.positions.weight'): tensor for name, tensor in state.items()}, path)
    else:
        save_net(net, path, class_names=CLASS_NAMES)
    return path


FILES = ('run.ckpt', 'run.pth', 'ours.safetensors', 'published.safetensors', 'layer.safetensors')


@pytest.mark.parametrize('name', FILES)
def test_every_layout_draws_the_picture(load, tmp_path, net, conds, name):
    written(net, tmp_path / name)
    model, vae = load(name)
    assert error(sample(model, conds)['samples'], reference(net, conds)) <= 1e-4
    image = torch.rand(1, 32, 48, 3)
    torch.testing.assert_close(vae.decode(vae.encode(image)).cpu(), image, atol=1e-2, rtol=0)


CONDS = (torch.tensor([3]), torch.tensor([5])), [class_conditioning(label) for label in (3, 5)]


def other(kind, **more):
    head = dict(type=kind, width=8, depth=1) if kind != 'LinearHead' else dict(type=kind)
    return randomize(PixNerdDiT(dim=48, depth=2, num_heads=4, num_classes=5, head=head, **more), seed=4).eval()


@pytest.mark.parametrize('name', FILES[:4])
def test_so_does_deco_and_its_picture_is_decoded_at_any_size(load, tmp_path, name):
    net = other('DeCoHead')
    model, _ = load(written(net, tmp_path / name).name)
    latent = sample(model, CONDS, record_field=True)
    assert error(latent['samples'], reference(net, CONDS)) <= 1e-4
    solver = AdamsFlowSampler(5, 2, 3.0, (0.0, 1.0), 1.0)
    _, field = solver.sample(net, noise(), *CONDS[0], record_field=True)
    image = PixNerdDecode.execute(latent, 180, 0, 20, 10, 100, 50, 0.3, 5, 700).args[0]
    expected = field.decode((120, 180), (10, 20, 60, 120), grain=0.3, seed=5)
    assert error(image, ((expected + 1) / 2).clamp(0, 1).movedim(1, -1)) <= 1e-3
    fine = PixNerdResolution.execute(model, 'fixed tokens', 64, 0, 0.5).args[0]
    drawn = solver.sample(net, noise((128, 92)), *CONDS[0], token_grid=(4, 4))
    assert error(sample(fine, CONDS, (128, 92))['samples'], drawn) <= 1e-4


FILE = 'epoch%3D319-step%3D1600000_emainit.ckpt'
SIZES = dict(deco_c2i_tiny=(32, 48), deco_t2i_tiny=(64, 96))


@pytest.mark.parametrize('name', [FILE, 'release.safetensors', 'ours.safetensors'])
@pytest.mark.parametrize('golden', SIZES)
def test_published_weights_of_deco_draw_the_picture_that_they_draw_in_the_library(load, tmp_path, golden, name):
    """The weights are those of tests/data, whose velocities are the published implementation's (test_deco.py)."""
    net, tensors, size = network(golden).eval(), read(golden), SIZES[golden]
    state = net.state_dict()
    published = save_lightning(tmp_path / FILE, state, {key: tensor + 1 for key, tensor in state.items()}, {})
    if name != FILE:
        convert(published, tmp_path / name, layout='published' if name.startswith('release') else None)
    model, _ = load(name)
    loaded = model.model.diffusion_model.state_dict().items()
    assert all(torch.equal(tensor, state[key.replace('.positions.weight', '.positions')]) for key, tensor in loaded)
    if net.text_dim is None:
        labels = (3, net.num_classes)
        conds = [torch.tensor([label]) for label in labels], [class_conditioning(label, 10) for label in labels]
    else:
        texts = tensors['text_embeds'].split(1)
        conds = texts, [[[text, {'pixnerd_text': True}]] for text in texts]
    latent = sample(model, conds, size, record_field=True)
    solver = AdamsFlowSampler(5, 2, 3.0, (0.0, 1.0), SHIFT['class' if net.text_dim is None else 'text'])
    drawn, field = solver.sample(net, noise(size), *conds[0], record_field=True)
    assert error(latent['samples'], drawn) <= 1e-4
    height, width = 2 * size[0], 2 * size[1]
    image = PixNerdDecode.execute(latent, width, height, 0, 0, 0, 0, 0.0, 0, 0).args[0]
    assert error(image, ((field.decode((height, width)) + 1) / 2).clamp(0, 1).movedim(1, -1)) <= 1e-3


@pytest.mark.parametrize('name', ['run.pth', 'ours.safetensors'])
@pytest.mark.parametrize('kind', ['NeuralFieldHead', 'DeCoHead', 'LinearHead'])
def test_so_does_a_network_that_predicts_the_image(load, tmp_path, name, kind):
    net = other(kind, prediction='image')
    model, _ = load(written(net, tmp_path / name).name)
    assert error(sample(model, CONDS)['samples'], reference(net, CONDS)) <= 1e-4
    if kind == 'LinearHead':
        with pytest.raises(ValueError, match=r'only a neural field, or DeCo, can be recorded, .* a LinearHead'):
            sample(model, CONDS, record_field=True)
        return
    latent = sample(model, CONDS, record_field=True)
    _, field = AdamsFlowSampler(5, 2, 3.0, (0.0, 1.0), 1.0).sample(net, noise(), *CONDS[0], record_field=True)
    image = PixNerdDecode.execute(latent, 192, 128, 0, 0, 0, 0, 0.0, 0, 0).args[0]
    assert error(image, ((field.decode((128, 192)) + 1) / 2).clamp(0, 1).movedim(1, -1)) <= 1e-3


def test_a_training_checkpoint_brings_its_class_names(load, tmp_path):
    written(build_net('class'), tmp_path / 'run.pth')
    positive, _ = PixNerdClassLabel.execute(load('run.pth')[0], 'goldfish').args
    assert positive[0][0].argmax() == 1


@pytest.mark.parametrize('content', [b'x', b'PK\x03\x04 torn'])
def test_what_is_no_checkpoint_is_said_in_one_line(load, tmp_path, content):
    (tmp_path / 'a.ckpt').write_bytes(content)
    with pytest.raises(ValueError, match=r'^model_name a\.ckpt is not a PixNerd model, or damaged: .*\.$') as caught:
        load('a.ckpt')
    assert '\n' not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


class Shout:
    """An object whose pickle calls a function."""

    def __reduce__(self):
        return shout, ()


def shout():
    raise AssertionError('it was run')


def test_code_in_a_checkpoint_is_never_run(load, tmp_path, net, conds):
    path = written(net, tmp_path / 'run.ckpt')
    content = torch.load(path, weights_only=True)
    torch.save({**content, 'hook': Shout()}, tmp_path / 'a.ckpt')
    with pytest.raises(AssertionError, match='it was run'):
        pickle.loads(pickle.dumps(Shout()))
    model, _ = load('a.ckpt')
    assert error(sample(model, conds)['samples'], reference(net, conds)) <= 1e-4


def test_imagenet_s_names_are_known(load, tmp_path):
    net = PixNerdDiT(dim=16, depth=1, num_heads=2, num_classes=1000, head=dict(type='NeuralFieldHead', width=8))
    save_net(net, tmp_path / 'a.safetensors')
    model, _ = load('a.safetensors')
    positive, _ = PixNerdClassLabel.execute(model, 'goldfish\nGolden Retriever').args
    assert positive[0][0].argmax(-1).flatten().tolist() == [1, 207]
    with pytest.raises(ValueError, match=r"'cardigan' is shared by classes \[264, 474\]"):
        PixNerdClassLabel.execute(model, 'cardigan')


class TestSettings:
    @pytest.fixture
    def settings(self):
        return dict(type='AdamsFlowSampler', num_steps=7, order=3, guidance_scale=2.0, guidance_interval=[0.2, 0.9])

    def test_zero_is_what_the_file_says(self, load, tmp_path, net, conds, caplog, settings):
        save_net(net, tmp_path / 'a.safetensors', sampling={**settings, 'timeshift': 2.0})
        model, _ = load('a.safetensors')
        with caplog.at_level(logging.INFO):
            result = sample(model, conds, steps=0, cfg=0.0, order=0, shift=0.0, guidance_end=0.0)['samples']
        assert 'PixNerd Sampler: 7 steps, cfg 2, order 3, shift 2, guidance where 0.2 < t < 0.9' in caplog.text
        expected = reference(
            net, conds, num_steps=7, order=3, guidance_scale=2.0, guidance_interval=(0.2, 0.9), timeshift=2.0
        )
        assert error(result, expected) <= 1e-4

    def test_the_file_s_limit_of_noise(self, load, tmp_path, net, conds, kind):
        save_net(
            net,
            tmp_path / 'a.safetensors',
            sampling=dict(type='AdamsFlowSampler', noise_limit=0.5, timeshift=SHIFT[kind]),
        )
        model, _ = load('a.safetensors')
        expected = reference(net, conds, noise_limit=0.5)
        assert error(expected, reference(net, conds)) > 0.01
        latent = sample(model, conds, record_field=True)
        assert error(latent['samples'], expected) <= 1e-4
        # Grain is limited too.
        solver = AdamsFlowSampler(5, 2, 3.0, timeshift=SHIFT[kind], noise_limit=0.5)
        _, field = solver.sample(net, noise(), *conds[0], record_field=True)
        image = PixNerdDecode.execute(latent, 192, 128, 0, 0, 0, 0, 0.3, 5, 0).args[0]
        expected = ((field.decode((128, 192), grain=0.3, seed=5) + 1) / 2).clamp(0, 1).movedim(1, -1)
        torch.testing.assert_close(image, expected, atol=2e-2, rtol=0)

    def test_a_widget_that_is_set_comes_first(self, load, tmp_path, net, conds, caplog, settings):
        save_net(net, tmp_path / 'a.safetensors', sampling={**settings, 'timeshift': 3.0})
        model, _ = load('a.safetensors')
        with caplog.at_level(logging.INFO):
            sample(model, conds, steps=2, cfg=0.0, order=1, guidance_start=0.0, guidance_end=1.0)
        assert 'PixNerd Sampler: 2 steps, cfg 2, order 1, shift 3, guidance where 0 < t < 1' in caplog.text


class TestCheckpoints:
    @pytest.fixture
    def saved(self, tmp_path, monkeypatch, net):
        """MODEL, CLIP and VAE, and the same three after CheckpointSave and CheckpointLoaderSimple."""
        from comfy_extras.nodes_model_merging import CheckpointSave
        from nodes import CheckpointLoaderSimple

        save_net(net, tmp_path / 'model.safetensors', class_names=CLASS_NAMES)
        monkeypatch.setattr(folder_paths, 'get_full_path_or_raise', lambda folder, name: str(tmp_path / name))
        model, vae = PixNerdModelLoader.execute('model.safetensors', 'default').args
        clip = load_text_encoder(text_encoder_tensors())
        saver = CheckpointSave()
        saver.output_dir = str(tmp_path)
        saver.save(model, clip, vae, 'whole/pixnerd')
        (path,) = (tmp_path / 'whole').glob('*.safetensors')
        return (model, clip, vae), CheckpointLoaderSimple().load_checkpoint(f'whole/{path.name}'), path

    def test_all_three_come_back(self, saved, conds):
        (model, clip, _), (again, clip_again, vae_again), path = saved
        assert again.model.class_names == CLASS_NAMES
        assert torch.equal(sample(again, conds)['samples'], sample(model, conds)['samples'])
        first, second = (PixNerdTextEncode.execute(c, 'a cat', '').args[0][0] for c in (clip, clip_again))
        assert torch.equal(first[0], second[0])
        assert second[1]['pixnerd_text']
        image = torch.rand(1, 32, 48, 3)
        torch.testing.assert_close(vae_again.decode(vae_again.encode(image)).cpu(), image, atol=1e-2, rtol=0)
        # On disk the positions have the name they always had.
        assert not any('positions.weight' in name for name in load_file(path))

    def test_our_loader_takes_the_model_out_of_it(self, saved, tmp_path, conds):
        (model, _, _), _, path = saved
        again, _ = PixNerdModelLoader.execute(f'whole/{path.name}', 'default').args
        assert torch.equal(sample(again, conds)['samples'], sample(model, conds)['samples'])


def test_stock_load_diffusion_model_reads_the_header(tmp_path):
    import inspect

    if 'metadata' not in inspect.signature(comfy.sd.load_diffusion_model_state_dict).parameters:
        pytest.skip('this host does not pass the header on')
    net = build_net('class')
    net.head.coordinates = 'cosine'
    save_net(net, tmp_path / 'model.safetensors', class_names=CLASS_NAMES)
    model = comfy.sd.load_diffusion_model(str(tmp_path / 'model.safetensors'))
    assert model.model.class_names == CLASS_NAMES
    assert model.model.diffusion_model.head.coordinates == 'cosine'


def test_another_model_s_text_encoder_is_named():
    class Clip:
        def tokenize(self, text):
            return {'qwen3_2b': []}

    with pytest.raises(ValueError, match=r'\(qwen3_2b\), whose template .* PixNerd Text Encoder Loader'):
        PixNerdTextEncode.execute(Clip(), 'a cat', '')


def test_a_text_of_another_template_is_said_in_the_log(caplog):
    from comfy_nodes.guards import warn_of_template

    warn_of_template('positive')
    assert 'positive was not encoded by the CLIP of PixNerd Text Encoder Loader' in caplog.text
