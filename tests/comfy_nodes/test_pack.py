"""What the registry's zip holds, and that it is enough for whoever has nothing else."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ..checkpoints.files import save_lightning, tiny_network

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ('__pycache__', '.git', 'work_dirs', 'build', 'dist')


@pytest.fixture(scope='module')
def pack(tmp_path_factory):
    """The repository's files without those that .comfyignore drops."""
    names = [
        os.path.relpath(os.path.join(folder, name), ROOT)
        for folder, folders, files in os.walk(ROOT)
        for name in files
        if not any(part.startswith('.venv') or part in GENERATED for part in Path(folder, name).parts)
    ]
    # git knows the rules of such files; it asks for a repository, of whatever.
    folder = tmp_path_factory.mktemp('pack')
    subprocess.run(['git', 'init', '-q', folder], check=True)
    shutil.copy(ROOT / '.comfyignore', folder / '.gitignore')
    check = ['git', '-C', folder, 'check-ignore', '--stdin', '--no-index']
    dropped = set(subprocess.run(check, input='\n'.join(names), capture_output=True, text=True).stdout.splitlines())
    for name in set(names) - dropped:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_it_has_what_its_user_needs(pack):
    needed = ['__init__.py', 'pyproject.toml', 'requirements.txt', 'LICENSE', 'NOTICE', 'README.md', 'docs/weights.md']
    needed += ['comfy_nodes/imagenet.txt', 'pixnerd_plugin/checkpoints/load.py', 'tools/convert_checkpoint.py']
    assert [name for name in needed if not (pack / name).is_file()] == []
    for folder in ('web/docs', 'locales/en', 'locales/zh', 'example_workflows', 'subgraphs'):
        assert {path.name for path in (pack / folder).iterdir()} == {path.name for path in (ROOT / folder).iterdir()}


def test_it_has_nothing_of_the_training(pack):
    for name in ('tests', 'mm_configs', 'docs/training.md', 'tools/train.py', 'pixnerd_plugin/engine', 'pixnerd'):
        assert not (pack / name).exists(), name


def test_the_converter_starts_where_nothing_is_installed(pack, tmp_path):
    """As ComfyUI's portable Python starts it: deaf to PYTHONPATH, and not looking beside the script."""
    state = tiny_network().state_dict()
    save_lightning(tmp_path / 'in.ckpt', state, state, {})
    code = """
import json, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
print(json.dumps(sys.modules['pixnerd_plugin'].__file__))
"""
    tool = str(pack / 'tools/convert_checkpoint.py')
    command = [sys.executable, '-I', '-c', code, tool, 'in.ckpt', 'out.safetensors']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / 'out.safetensors').is_file()
    assert Path(json.loads(result.stdout.splitlines()[-1])).is_relative_to(pack)


@pytest.mark.skipif(shutil.which('comfy') is None, reason='comfy-cli is not installed')
def test_the_registry_s_own_tool_packs_the_same(pack, tmp_path):
    """``comfy node validate`` and ``comfy node pack`` on a checkout: its zip is the pack."""
    checkout = tmp_path / 'checkout'
    shutil.copytree(
        ROOT, checkout, ignore=shutil.ignore_patterns('.git', '__pycache__', '.venv*', 'work_dirs', '*.zip')
    )
    for command in (['init', '-q'], ['add', '-A'], ['-c', 'user.name=a', '-c', 'user.email=a@a', 'commit', '-qm', 'a']):
        subprocess.run(['git', '-C', checkout, *command], check=True)
    for command in ('validate', 'pack'):
        subprocess.run(['comfy', '--skip-prompt', 'node', command], cwd=checkout, check=True, timeout=120)
    with zipfile.ZipFile(checkout / 'node.zip') as file:
        packed = {name for name in file.namelist() if not name.endswith('/')}
    ours = {str(path.relative_to(pack)) for path in pack.rglob('*') if path.is_file()}
    # What git and Python left in ours, and the rules themselves.
    left = ('.git/', '.gitignore', '.comfyignore')
    assert packed - set(left) == {n for n in ours if not n.startswith(left) and '__pycache__' not in n}
