import pytest

from comfy_nodes.settings import Settings, resolve

HEAD = dict(type='NeuralFieldHead')
TEXT = dict(architecture=dict(text_dim=8, head=HEAD))
CLASSES = dict(architecture=dict(num_classes=8, head=HEAD))
MODELS_OWN = Settings(0, 0.0, 0, 3.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ('metadata', 'expected'),
    [(TEXT, Settings(25, 4.0, 2, 3.0, 0.0, 1.0)), (CLASSES, Settings(100, 3.5, 1, 3.0, 0.1, 1.0))],
)
def test_the_published_settings_where_a_file_says_nothing(metadata, expected):
    assert resolve(metadata, MODELS_OWN) == expected


def test_a_file_s_own_settings():
    sampling = dict(type='AdamsFlowSampler', num_steps=7, order=3, guidance_scale=2.0, guidance_interval=[0.2, 0.9])
    assert resolve({**TEXT, 'sampling': sampling}, MODELS_OWN) == Settings(7, 2.0, 3, 3.0, 0.2, 0.9)


def test_a_file_s_own_limit_of_noise():
    """No widget sets it, so that it holds whatever they say."""
    sampling = dict(type='AdamsFlowSampler', noise_limit=2.0)
    assert resolve({**TEXT, 'sampling': sampling}, Settings(9, 1.0, 1, 3.0, 0.0, 1.0)).noise_limit == 2
    assert resolve(TEXT, MODELS_OWN).noise_limit == 0


def test_widgets_come_first():
    """Those of workflows saved before 0 meant anything are all set, and stay what they were."""
    widgets = Settings(25, 4.0, 2, 3.0, 0.0, 1.0)
    assert resolve(CLASSES, widgets) == widgets
    assert resolve(CLASSES, widgets._replace(start=0.3, end=0.7))[4:6] == (0.3, 0.7)


def test_the_log_line_names_them_all():
    assert str(Settings(25, 4.0, 2, 3.0, 0.1, 1.0)) == ('25 steps, cfg 4, order 2, shift 3, guidance where 0.1 < t < 1')
    assert str(Settings(25, 4.0, 2, 3.0, 0.1, 1.0, 2.0)).endswith('guidance where 0.1 < t < 1, noise within 2')


def test_mean_velocities_know_no_guidance_and_no_order():
    """Whatever the widgets say; only the steps are asked for."""
    few = dict(architecture=dict(num_classes=8, head=HEAD, step_end=True))
    assert resolve(few, MODELS_OWN) == Settings(2, 1.0, 1, 3.0, 0.0, 1.0, is_mean=True)
    settings = resolve(few, Settings(4, 7.0, 3, 1.0, 0.2, 0.8))
    assert settings == Settings(4, 1.0, 1, 1.0, 0.0, 1.0, is_mean=True)
    assert str(settings) == '4 MeanFlow steps, shift 1; cfg is ignored, the guidance is learned'
