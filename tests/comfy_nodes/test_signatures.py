"""The pack's calls of ComfyUI against the newest host tried, where there is no host at all."""

from .host_calls import Call, host_calls, known_signatures, problem

CALLS = list(host_calls())
SIGNATURES = known_signatures()['signatures']


def test_each_call_fits():
    assert len(CALLS) > 60
    assert [text for call in CALLS if (text := problem(call, SIGNATURES[call.name]))] == []


def test_what_does_not_fit_is_found():
    parameters = SIGNATURES['comfy.sample.prepare_noise']
    assert problem(Call('comfy.sample.prepare_noise', 'a.py:1', 2, (), False), parameters) == ''
    assert 'a.py:1' in problem(Call('comfy.sample.prepare_noise', 'a.py:1', 1, (), False), parameters)
    assert 'a.py:1' in problem(Call('comfy.sample.prepare_noise', 'a.py:1', 2, ('colour',), False), parameters)


def test_all_of_them_are_kept():
    assert set(SIGNATURES) == {call.name for call in CALLS}
