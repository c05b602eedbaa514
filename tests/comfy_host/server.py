"""A ComfyUI server of its own: a temporary base folder with tiny models, this checkout as its only pack."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

# Before the host, whose checkout has a package of the same name.
from tests.checkpoints.files import save_lightning

from .host import CLASS_NAMES, ROOT, build_net, imagenet_net, save_net, text_encoder_tensors

TEXT_MODEL = 'pixnerd_xxl16_t2i_512.safetensors'
CLASS_MODEL = 'pixnerd_xl16_256.safetensors'
# The names of the published files, which the shipped workflows ask for.
PUBLISHED_TEXT = 'model.ckpt'
PUBLISHED_CLASS = 'epoch%3D319-step%3D1600000_emainit.ckpt'
TEXT_ENCODER = 'qwen3_1.7b.safetensors'
LORA = 'pixnerd_lora.safetensors'
PICTURE = 'example.png'


def fill_base_folder(base: Path) -> None:
    """Tiny files under the names that the shipped workflows ask for, and this checkout among the custom nodes."""
    from .test_model import lora

    for folder in (
        'models/diffusion_models',
        'models/text_encoders',
        'models/loras',
        'input',
        'output',
        'custom_nodes',
    ):
        (base / folder).mkdir(parents=True, exist_ok=True)
    text_net = build_net('text')
    save_net(text_net, base / 'models/diffusion_models' / TEXT_MODEL)
    save_net(build_net('class'), base / 'models/diffusion_models' / CLASS_MODEL, class_names=CLASS_NAMES)
    state = text_net.state_dict()
    save_lightning(base / 'models/diffusion_models' / PUBLISHED_TEXT, state, state, {})
    state = imagenet_net().state_dict()
    save_lightning(base / 'models/diffusion_models' / PUBLISHED_CLASS, state, state, {})
    save_file(text_encoder_tensors(), base / 'models/text_encoders' / TEXT_ENCODER)
    save_file(lora(text_net), base / 'models/loras' / LORA)
    # A picture with a transparent square, which LoadImage gives as the mask.
    y, x = np.mgrid[:300, :400]
    alpha = np.where((abs(x - 200) < 60) & (abs(y - 150) < 60), 0, 255)
    pixels = np.stack([x * 255 // 400, y * 255 // 300, (x + y) % 256, alpha], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(base / 'input' / PICTURE)
    (base / 'custom_nodes' / 'pixnerd').symlink_to(ROOT, target_is_directory=True)


class Server:
    """A running ComfyUI."""

    def __init__(self, comfyui: Path, base: Path):
        self.base = base
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}'
        self.log = base / 'server.log'
        launch = Path(__file__).with_name('launch.py')
        arguments = ['--cpu', '--base-directory', base, '--port', self.port, '--disable-auto-launch']
        arguments += ['--preview-method', 'latent2rgb', '--disable-api-nodes']
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                [sys.executable, str(launch), str(comfyui / 'main.py'), *map(str, arguments)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'PYTHONUNBUFFERED': '1'},
            )
        try:
            self._wait_until(lambda: self.get('/system_stats'), 300)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST JSON; the JSON answer, also of a refusal."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or '{}')
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def queue(self, prompt: dict[str, Any], client_id: str = 'tests') -> str:
        answer = self.post('/prompt', {'prompt': prompt, 'client_id': client_id})
        assert 'prompt_id' in answer, answer
        return answer['prompt_id']

    def wait(self, prompt_id: str, seconds: float = 120) -> dict[str, Any]:
        """The history entry of a prompt, once it has ended in whatever way."""
        return self._wait_until(lambda: self.get(f'/history/{prompt_id}').get(prompt_id), seconds)

    def run(self, prompt: dict[str, Any], seconds: float = 120) -> list[np.ndarray]:
        """Run a prompt to its pictures ``(H, W, 3)``."""
        entry = self.wait(self.queue(prompt), seconds)
        assert entry['status']['status_str'] == 'success', failure(entry)
        return [self.picture(image) for node in entry['outputs'].values() for image in node.get('images', [])]

    def picture(self, image: dict[str, str]) -> np.ndarray:
        query = urllib.parse.urlencode(image)
        with urllib.request.urlopen(f'{self.url}/view?{query}', timeout=30) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())).convert('RGB'))

    def _wait_until(self, ready: Any, seconds: float) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, f'ComfyUI ended:\n{self.log.read_text()[-3000:]}'
            try:
                if result := ready():
                    return result
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            time.sleep(0.1)
        raise TimeoutError(f'nothing in {seconds} s; the log ends:\n{self.log.read_text()[-3000:]}')


def failure(entry: dict[str, Any]) -> str:
    """The message of the node that failed in a history entry."""
    for kind, content in entry['status']['messages']:
        if kind == 'execution_error':
            return content['exception_message'].strip()
    return ''
