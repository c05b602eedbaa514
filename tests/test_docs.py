"""README.md and docs/: their links, the files they name, their commands and the script for the Python engineer."""

import argparse
import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixnerd_plugin import load_backbone
from pixnerd_plugin.functional.noise import draw_noise, image_generators
from pixnerd_plugin.images import to_uint8
from pixnerd_plugin.sampling import EulerFlowSampler
from tests.golden import DATA

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# What the three launchers take before the options of the tool they start: where its positional arguments are.
LAUNCHERS = {
    'dist_train.sh': ('train.py', (0,), 2),
    'dist_test.sh': ('test.py', (0, 1), 3),
    'slurm_train.sh': ('train.py', (2,), 3),
}


def code_blocks(page: str, languages: str) -> list[str]:
    return re.findall(rf'^```(?:{languages})\n(.*?)^```', page, re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    return re.sub(r'^```.*?^```', '', page, flags=re.DOTALL | re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')


def anchors(page: str) -> set[str]:
    return {anchor(heading) for heading in re.findall(r'^#+ (.*)$', prose(page), re.MULTILINE)}


def broken_links(path: Path, page: str) -> list[str]:
    """The relative links of a page that lead nowhere."""
    broken = []
    links = re.findall(r'\]\(([^)\s]+)\)|<img[^>]*src="([^"]+)"', prose(page))
    for link in (markdown or html for markdown, html in links):
        if re.match(r'[a-z]+:', link):
            continue
        file, _, heading = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        exists = target == path or target.exists()
        text = page if target == path else target.read_text(encoding='utf-8') if exists and heading else ''
        if not exists or (heading and heading not in anchors(text)):
            broken.append(link)
    return broken


def missing_files(page: str) -> list[str]:
    """The files and folders of this repository that a page names and that are not there."""
    named = re.findall(r'(?<![\w/.])(?:mm_configs|tools|tests|docs|pixnerd_plugin|comfy_nodes)/[\w./{},*-]+', page)
    return [name for name in named if '{' not in name and not list(ROOT.glob(name.rstrip('./,-')))]


def commands(page: str) -> list[list[str]]:
    """The words of each command in a page that starts something in ``tools/``."""
    lines = [line for block in code_blocks(page, 'bash|sh') for line in block.replace('\\\n', ' ').splitlines()]
    lines += [code for code in re.findall(r'`([^`\n]+)`', prose(page)) if code.startswith(('python tools/', 'tools/'))]
    found = []
    for line in lines:
        words = shlex.split(line.replace('…', 'x'), comments=True)
        start = next((i for i, word in enumerate(words) if re.fullmatch(r'tools/.*\.(py|sh)', word)), None)
        # The name alone, in prose, is no command.
        if start is not None and (len(words) > start + 1 or line in page.splitlines()):
            found.append(words[start:])
    return found


class Parsed(BaseException):
    """Raised in place of the tool's work, once its command line is understood."""


def complaint(command: list[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Why a tool refuses the words of a command; None if it takes them."""
    tool, *words = command
    if launcher := LAUNCHERS.get(Path(tool).name):
        name, positions, number = launcher
        if len(words) < number:
            return f'{tool} takes {number} arguments'
        tool, words = f'tools/{name}', [words[i] for i in positions] + words[number:]
    if not (ROOT / tool).is_file():
        return f'{tool} does not exist'
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *args, **kwargs):
        parse_args(parser, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
    monkeypatch.setattr(sys, 'argv', [tool, *words])
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / tool).rsplit('/', 1)[0])
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            runpy.run_path(str(ROOT / tool), run_name='__main__')
    except Parsed:
        return None
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    return f'{tool} parses no arguments'


@pytest.mark.parametrize('name', NAMES)
def test_links_lead_somewhere(name):
    assert broken_links(ROOT / name, (ROOT / name).read_text(encoding='utf-8')) == []


def test_a_broken_link_is_found():
    page = (
        '# A page\n[a](README.md) [b](#a-page) [c](absent.md) [d](#no-heading) ![e](docs/absent.png) [f](https://x.y)'
    )
    assert broken_links(ROOT / 'page.md', page) == ['absent.md', '#no-heading', 'docs/absent.png']


@pytest.mark.parametrize('name', NAMES)
def test_named_files_exist(name):
    assert missing_files((ROOT / name).read_text(encoding='utf-8')) == []


def test_a_missing_file_is_found():
    page = 'tools/train.py, mm_configs/*.py and tests/sampling; not tools/absent.py or mm_configs/absent_*.py.'
    assert missing_files(page) == ['tools/absent.py', 'mm_configs/absent_*.py.']


@pytest.mark.parametrize('name', NAMES)
def test_tools_take_the_commands_of_the_page(name, monkeypatch):
    refused = {}
    for command in commands((ROOT / name).read_text(encoding='utf-8')):
        with monkeypatch.context() as patch:
            if reason := complaint(command, patch):
                refused[shlex.join(command)] = reason
    assert refused == {}


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('python tools/absent.py', 'tools/absent.py does not exist'),
        ('python tools/train.py CONFIG --resme', '--resme'),
        ('python tools/benchmark.py forwards', 'forwards'),
        ('tools/dist_train.sh mm_configs/pixnerd_xl16.py 8 \\\n    --absent', '--absent'),
        ('tools/dist_test.sh CONFIG CHECKPOINT', 'takes 3 arguments'),
    ],
)
def test_a_wrong_command_is_found(line, reason, monkeypatch):
    (command,) = commands(f'```bash\n{line}\n```\n')
    assert reason in complaint(command, monkeypatch)


def test_the_index_lists_every_page():
    index = (ROOT / 'docs/README.md').read_text(encoding='utf-8')
    pages = {page.name for page in (ROOT / 'docs').glob('*.md')} - {'README.md'}
    assert pages == set(re.findall(r'\]\((\w+\.md)\)', index))


def run_script(script: str, tiny: dict[str, str]) -> None:
    """Run a script of the README with some of its texts replaced, all of which must be there."""
    for wanted, given in tiny.items():
        assert wanted in script
        script = script.replace(wanted, given)
    exec(script, {})


def test_the_script_for_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = DATA / 'c2i_tiny_lightning.ckpt'
    tiny = {
        "'cuda'": "'cpu'",
        "'bfloat16'": "'float32'",
        'weights/pixnerd_xl16.safetensors': str(checkpoint),
        '[207, 88]': '[3, 7]',
        '[207]': '[3]',
        'num_steps=100': 'num_steps=3',
        '(1024, 1024)': '(128, 128)',
        '(0, 0, 512, 512)': '(0, 0, 64, 32)',
    }
    run_script(code_blocks(README, 'python')[0], tiny)

    # The same by hand, one picture at a time, from the network alone.
    net = load_backbone(checkpoint).eval()
    sampler = EulerFlowSampler(num_steps=3, guidance_scale=3.5, guidance_interval=(0.1, 1.0))
    fields = {}
    for label, seed in ((3, 0), (7, 1)):
        noise = draw_noise(image_generators([seed]), (3, 64, 64))
        image, fields[label] = sampler.sample(
            net, noise, torch.tensor([label]), torch.tensor([net.num_classes]), record_field=True
        )
        assert_same_image(f'class_{label}.png', to_uint8(image)[0])
    assert_same_image('region.png', to_uint8(fields[3].decode(size=(128, 128), region=(0, 0, 64, 32)))[0])


def test_the_script_for_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = {
        "'cuda'": "'cpu'",
        "'bfloat16'": "'float32'",
        'weights/pixnerd_xxl16_t2i.safetensors': str(DATA / 't2i_tiny.safetensors'),
        'weights/qwen3': str(DATA / 'qwen3_tiny'),
        '(512, 512)': '(32, 32)',
        'num_steps=25': 'num_steps=2',
    }
    run_script(code_blocks(README, 'python')[1], tiny)
    one, other = (np.asarray(Image.open(f'text_{index}.png')) for index in range(2))
    assert one.shape == other.shape == (32, 32, 3)
    assert (one != other).any()


def assert_same_image(path: str, pixels: np.ndarray) -> None:
    """Equal but for the rounding of another batch size."""
    difference = np.asarray(Image.open(path)).astype(int) - pixels
    assert np.abs(difference).max() <= 1
