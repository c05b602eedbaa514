"""PixNerd on a running ComfyUI, through its HTTP and websocket interfaces."""

import asyncio
import json
import shutil
import threading
import time
import urllib.error

import numpy as np
import pytest

from .host import ROOT, require_host

require_host()

from .server import CLASS_MODEL, LORA, PUBLISHED_TEXT, TEXT_ENCODER, TEXT_MODEL, failure  # noqa: E402
from .workflow import cheapened, to_prompt  # noqa: E402

WORKFLOWS = sorted((ROOT / 'example_workflows').glob('*.json'))
# As users saved them, before widgets were added and 0 meant the model's own.
OLD_WORKFLOWS = sorted((ROOT / 'tests/data/v0.1/workflows').glob('*.json'))
SIDE = 128
NODE_IDS = (
    'PixNerdModelLoader',
    'PixNerdTextEncoderLoader',
    'PixNerdTextEncode',
    'PixNerdClassLabel',
    'PixNerdEmptyImage',
    'PixNerdSampler',
    'PixNerdAdamsSolver',
    'PixNerdSigmas',
    'PixNerdGuidanceInterval',
    'PixNerdResolution',
    'PixNerdDecode',
)


def node(class_type, **inputs):
    return {'class_type': class_type, 'inputs': inputs}


def sampler(**changes):
    inputs = dict(model=['1', 0], positive=['3', 0], negative=['3', 1], latent=['4', 0], seed=1, steps=3, cfg=4.0)
    inputs |= dict(order=2, shift=0.0, guidance_start=0.0, guidance_end=1.0, denoise=1.0, record_field=False)
    return node('PixNerdSampler', **{**inputs, **changes})


def decode(**changes):
    inputs = dict.fromkeys(('width', 'height', 'region_x', 'region_y', 'region_width', 'region_height'), 0)
    return node(
        'PixNerdDecode', latent=['5', 0], **{**inputs, 'grain': 0.0, 'grain_seed': 0, 'field_chunk': 0, **changes}
    )


def text_prompt(side=SIDE, text='a cat', **changes):
    return {
        '1': node('PixNerdModelLoader', model_name=TEXT_MODEL, weight_dtype='default'),
        '2': node('PixNerdTextEncoderLoader', text_encoder_name=TEXT_ENCODER, device='default'),
        '3': node('PixNerdTextEncode', clip=['2', 0], text=text, negative_text=''),
        '4': node('PixNerdEmptyImage', width=side, height=side, batch_size=1),
        '5': sampler(**changes),
        '6': decode(),
        '7': node('SaveImage', images=['6', 0], filename_prefix='test'),
    }


def class_prompt(label='goldfish', **changes):
    prompt = text_prompt(**changes)
    del prompt['2']
    prompt['1'] = node('PixNerdModelLoader', model_name=CLASS_MODEL, weight_dtype='default')
    prompt['3'] = node('PixNerdClassLabel', model=['1', 0], label=label, class_names='')
    return prompt


def custom_prompt():
    """The remaining nodes, around core's SamplerCustomAdvanced."""
    prompt = text_prompt()
    prompt |= {
        '10': node('PixNerdResolution', model=['1', 0], mode='fixed tokens', base_size=64, field_chunk=4096),
        '11': node('PixNerdGuidanceInterval', model=['10', 0], guidance_start=0.1, guidance_end=0.9),
        '12': node('PixNerdSigmas', model=['11', 0], steps=3, shift=0.0, denoise=1.0),
        '13': node('PixNerdAdamsSolver', order=2),
        '14': node('RandomNoise', noise_seed=1),
        '15': node('CFGGuider', model=['11', 0], positive=['3', 0], negative=['3', 1], cfg=4.0),
        '5': node(
            'SamplerCustomAdvanced',
            noise=['14', 0],
            guider=['15', 0],
            sampler=['13', 0],
            sigmas=['12', 0],
            latent_image=['4', 0],
        ),
        '6': node('VAEDecode', samples=['5', 0], vae=['1', 1]),
    }
    return prompt


class TestNodes:
    def test_all_are_there_with_tooltips_and_help(self, server, object_info):
        assert {name for name in object_info if name.startswith('PixNerd')} == set(NODE_IDS)
        for name in NODE_IDS:
            info = object_info[name]
            assert info['python_module'] == 'custom_nodes.pixnerd'
            for group in ('required', 'optional'):
                for widget, (_, *options) in info['input'].get(group, {}).items():
                    assert options[0].get('tooltip'), f'{name}.{widget}'
            assert len(info['output_tooltips']) == len(info['output'])
            with_help = server.base / 'custom_nodes/pixnerd/web/docs' / f'{name}.md'
            assert with_help.is_file()

    def test_a_checkpoint_is_dropped_in_and_chosen(self, server):
        published = node('PixNerdModelLoader', model_name=PUBLISHED_TEXT, weight_dtype='default')
        pictures = [server.run({**text_prompt(), '1': model}) for model in (text_prompt()['1'], published)]
        assert np.abs(np.subtract(*(p[0].astype(int) for p in pictures))).max() <= 1

    def test_a_size_that_is_no_multiple_of_a_patch(self, server):
        (picture,) = server.run(text_prompt(side=120))
        assert picture.shape == (120, 120, 3)

    @pytest.mark.parametrize('make', [text_prompt, class_prompt, custom_prompt])
    def test_every_node_runs(self, server, make):
        (picture,) = server.run(make())
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.std() > 5

    def test_sampler_and_stock_route_agree(self, server):
        prompt = custom_prompt()
        prompt['5b'] = sampler(model=['10', 0], guidance_start=0.1, guidance_end=0.9)
        prompt['6b'] = node('VAEDecode', samples=['5b', 0], vae=['1', 1])
        prompt['7b'] = node('SaveImage', images=['6b', 0], filename_prefix='test')
        first, second = server.run(prompt)
        assert np.abs(first.astype(int) - second.astype(int)).max() <= 1

    def test_translations_and_workflows_are_offered(self, server):
        translations = server.get('/i18n')
        for language in ('en', 'zh'):
            assert set(NODE_IDS) <= set(translations[language]['nodeDefs'])
        assert set(server.get('/workflow_templates')['pixnerd']) == {path.stem for path in WORKFLOWS}

    def test_the_pack_loads_without_a_complaint(self, server):
        lines = [line for line in server.log.read_text().splitlines() if 'custom_nodes/pixnerd' in line]
        assert lines
        assert not any('FAILED' in line or 'Cannot import' in line for line in lines)


@pytest.mark.parametrize('path', WORKFLOWS + OLD_WORKFLOWS, ids=lambda path: path.stem)
def test_shipped_workflows_run(server, object_info, path):
    prompt = cheapened(to_prompt(json.loads(path.read_text()), object_info))
    pictures = server.run(prompt)
    saves = sum(node['class_type'] == 'SaveImage' for node in prompt.values())
    assert len(pictures) >= saves
    assert all(picture.std() > 2 for picture in pictures)


def test_old_workflows_mean_what_they_meant(server, object_info):
    """The loader's file aside, the settings that are saved in them are those that the run has."""
    path = ROOT / 'tests/data/v0.1/workflows/class_conditional.json'
    prompt = cheapened(to_prompt(json.loads(path.read_text()), object_info))
    server.run(prompt)
    assert '3 steps, cfg 3.5, order 2, shift 1, guidance where 0.1 < t < 1' in server.log.read_text()


def test_the_lora_changes_the_picture(server):
    prompt = text_prompt()
    prompt['8'] = node('LoraLoaderModelOnly', model=['1', 0], lora_name=LORA, strength_model=1.0)
    prompt['5b'] = sampler(model=['8', 0])
    prompt['6b'] = {**decode(), 'inputs': {**decode()['inputs'], 'latent': ['5b', 0]}}
    prompt['7b'] = node('SaveImage', images=['6b', 0], filename_prefix='test')
    plain, changed = server.run(prompt)
    assert np.abs(plain.astype(int) - changed.astype(int)).max() > 5


def test_inpainting_keeps_the_rest_of_the_picture(server, object_info):
    workflow = json.loads((ROOT / 'example_workflows/05_inpaint.json').read_text())
    prompt = cheapened(to_prompt(workflow, object_info))
    (scale,) = (number for number, node in prompt.items() if node['class_type'] == 'ImageScale')
    prompt['original'] = node('SaveImage', images=[scale, 0], filename_prefix='test')
    pictures = server.run(prompt)
    difference = np.abs(pictures[0].astype(int) - pictures[1].astype(int)).max(axis=-1)
    assert (difference <= 2).mean() > 0.7
    assert difference.max() > 20


class TestErrors:
    @pytest.mark.parametrize(
        ('prompt', 'message'),
        [
            (lambda: class_prompt('5'), 'label: class 5 is out of range'),
            (lambda: class_prompt('whale'), "label: class 'whale' is unknown"),
            (lambda: {**text_prompt(), '3': class_prompt()['3']}, 'model draws from text'),
            (lambda: {**text_prompt(), '1': class_prompt()['1']}, 'positive holds a text'),
            (lambda: {**text_prompt(), '6': decode(width=256)}, 'record_field on'),
            (lambda: text_prompt(guidance_start=0.9, guidance_end=0.1), 'guidance_start is 0.9'),
            (lambda: model_file('training.ckpt'), 'model_name training.ckpt is not a PixNerd model, or damaged'),
            (lambda: model_file(TEXT_ENCODER), 'is not a PixNerd model'),
            (lambda: model_file('torn.safetensors'), 'torn.safetensors is damaged or not complete'),
            (lambda: {**text_prompt(), '2': encoder_file(TEXT_MODEL)}, 'not a Qwen3 text encoder'),
        ],
    )
    def test_one_plain_sentence_and_the_queue_goes_on(self, server, prompt, message):
        for folder, name in (('text_encoders', TEXT_ENCODER), ('diffusion_models', TEXT_MODEL)):
            for other in ('text_encoders', 'diffusion_models'):
                target = server.base / 'models' / other / name
                if not target.exists():
                    shutil.copy(server.base / 'models' / folder / name, target)
        models = server.base / 'models/diffusion_models'
        (models / 'training.ckpt').write_bytes(b'x')
        (models / 'torn.safetensors').write_bytes((models / TEXT_MODEL).read_bytes()[:5000])
        bad = server.queue(prompt())
        after = [server.queue(text_prompt(seed=seed, side=64)) for seed in (time.time_ns() % 2**32, 7)]
        text = failure(server.wait(bad))
        assert message in text
        assert '\n' not in text
        for prompt_id in after:
            assert server.wait(prompt_id)['status']['status_str'] == 'success'


def model_file(name):
    return {**text_prompt(), '1': node('PixNerdModelLoader', model_name=name, weight_dtype='default')}


def encoder_file(name):
    return node('PixNerdTextEncoderLoader', text_encoder_name=name, device='default')


class Listener(threading.Thread):
    """What the websocket says, until the prompt of ``client`` ends."""

    def __init__(self, server, client):
        super().__init__(daemon=True)
        self.url = f'{server.url}/ws?clientId={client}'
        self.messages, self.previews = [], 0
        self.connected = threading.Event()
        self.start()
        assert self.connected.wait(10)

    def run(self):
        asyncio.run(self._listen())

    async def _listen(self):
        import aiohttp

        async with aiohttp.ClientSession() as session, session.ws_connect(self.url, max_msg_size=0) as socket:
            self.connected.set()
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    self.previews += 1
                    continue
                content = json.loads(message.data)
                self.messages.append(content)
                if content['type'] in ('execution_success', 'execution_interrupted', 'execution_error'):
                    return

    def progress(self):
        return [m['data']['value'] for m in self.messages if m['type'] == 'progress']


class TestWhileItRuns:
    def test_progress_and_previews_arrive(self, server):
        listener = Listener(server, 'progress')
        server.wait(server.queue(text_prompt(steps=6, seed=time.time_ns() % 2**32), 'progress'))
        listener.join(10)
        assert listener.progress()[-1] == 6
        assert listener.previews >= 5
        assert listener.messages[-1]['type'] == 'execution_success'

    @pytest.mark.parametrize('where', ['sampler', 'decode'])
    def test_cancel_stops_within_a_step(self, server, where):
        prompt = text_prompt(side=256, steps=400, seed=time.time_ns() % 2**32)
        total = 400
        if where == 'decode':
            prompt = text_prompt(side=64, steps=4, record_field=True)
            prompt['6'] = decode(width=4096, field_chunk=16384)
            total = 4096**2
        listener = Listener(server, f'cancel {where}')
        prompt_id = server.queue(prompt, f'cancel {where}')
        end = time.monotonic() + 60
        while not any(m['type'] == 'progress' and m['data']['max'] == total for m in listener.messages):
            assert time.monotonic() < end
            time.sleep(0.02)
        at_cancel = listener.progress()[-1]
        server.post('/interrupt', {})
        entry = server.wait(prompt_id, 30)
        listener.join(10)
        assert listener.messages[-1]['type'] == 'execution_interrupted'
        assert entry['status']['status_str'] == 'error'
        # Steps that were under way when the request was sent may end.
        allowed = 5 if where == 'sampler' else 20 * 16384
        assert listener.progress()[-1] - at_cancel <= allowed


def test_newer_hosts_offer_the_blueprints(server):
    try:
        offered = server.get('/global_subgraphs')
    except urllib.error.HTTPError:
        pytest.skip('this host knows no blueprints')
    ours = {entry['name'] for entry in offered.values() if entry['info']['node_pack'] == 'custom_nodes.pixnerd'}
    assert ours == {path.stem for path in (ROOT / 'subgraphs').glob('*.json')}
