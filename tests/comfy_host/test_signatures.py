"""What the pack calls of ComfyUI, against this host; and what CI, which has none, believes of the newest."""

import shutil
import subprocess

import pytest

from tests.comfy_nodes.host_calls import host_calls, known_signatures, problem, signature_of

from .host import ROOT, import_host, require_host

COMFYUI = require_host()
import_host()


def test_each_call_fits_this_host():
    assert [text for call in host_calls() if (text := problem(call, signature_of(call.name)))] == []


def test_what_ci_believes_is_so():
    from comfyui_version import __version__

    known = known_signatures()
    if __version__ != known['host']:
        pytest.skip(f'the signatures are those of {known["host"]}')
    assert {name: signature_of(name) for name in known['signatures']} == known['signatures']


@pytest.mark.skipif(shutil.which('comfy-import-guard') is None, reason='comfy-import-guard is not installed')
def test_comfy_import_guard_is_content(tmp_path):
    """The registry's checker of a pack's names and calls, against this host."""
    clone, install = tmp_path / 'cache/ComfyUI', tmp_path / 'install'
    ignore = shutil.ignore_patterns('.git', '__pycache__', 'models', 'output', 'input', 'tests', 'tests-unit')
    shutil.copytree(COMFYUI, clone, ignore=ignore)
    for command in (['init', '-q'], ['add', '-A'], ['-c', 'user.name=a', '-c', 'user.email=a@a', 'commit', '-qm', 'a']):
        subprocess.run(['git', '-C', clone, *command], check=True)
    subprocess.run(['git', '-C', clone, 'update-ref', 'refs/remotes/origin/master', 'HEAD'], check=True)
    shutil.copytree(COMFYUI, install, ignore=shutil.ignore_patterns('.git', '__pycache__', 'custom_nodes', 'models'))
    pack = install / 'custom_nodes/pixnerd'
    for name in ('comfy_nodes', 'pixnerd_plugin'):
        shutil.copytree(ROOT / name, pack / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / '__init__.py', pack)
    command = ['comfy-import-guard', '--offline', '--cache-dir', clone.parent, 'check', '--comfy-dir', install]
    command += ['--no-update', '--strict']
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert '1 safe' in result.stdout, result.stdout
