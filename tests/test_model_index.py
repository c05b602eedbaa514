"""model-index.yml and its metafiles, in OpenMMLab's format, name every config and tell the truth about its size."""

from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config

from pixnerd_plugin.registry import MODELS

ROOT = Path(__file__).parent.parent
METAFILES = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
MODELS_LISTED = [
    (model, {collection['Name'] for collection in content['Collections']})
    for content in (yaml.safe_load((ROOT / path).read_text()) for path in METAFILES)
    for model in content['Models']
]


def test_every_config_is_listed_once():
    listed = [model['Config'] for model, _ in MODELS_LISTED]
    configs = [*ROOT.glob('mm_configs/*.py'), *ROOT.glob('mm_configs/ablations/*.py')]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in configs)
    assert len({model['Name'] for model, _ in MODELS_LISTED}) == len(listed)


@pytest.mark.parametrize('path', METAFILES)
def test_a_collection_names_paper_code_and_readme(path):
    for collection in yaml.safe_load((ROOT / path).read_text())['Collections']:
        assert collection['Paper'].keys() == {'Title', 'URL'}
        assert (ROOT / collection['README']).is_file()
        assert (ROOT / collection['Code']).is_file()


@pytest.mark.parametrize(
    ('model', 'collections'), MODELS_LISTED, ids=lambda value: isinstance(value, dict) and value['Name']
)
def test_a_model_belongs_to_a_collection_and_has_the_parameters_it_says(model, collections):
    assert model['In Collection'] in collections
    for result in model.get('Results', []):
        assert result.keys() == {'Task', 'Dataset', 'Metrics'}
    with torch.device('meta'):
        backbone = MODELS.build(Config.fromfile(ROOT / model['Config']).model.backbone)
    assert sum(p.numel() for p in backbone.parameters()) == model['Metadata']['Parameters']
