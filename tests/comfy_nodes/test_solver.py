from types import SimpleNamespace

import pytest
import torch

from comfy_nodes.solver import interval_wrapper, model_shift, published_sigmas, sample_adams
from pixnerd_plugin.sampling import AdamsFlowSampler


class TestSigmas:
    @pytest.mark.parametrize('shift', [1.0, 3.0])
    def test_they_are_one_minus_the_published_times(self, shift):
        times = AdamsFlowSampler(25, timeshift=shift).timesteps
        torch.testing.assert_close(published_sigmas(25, shift), (1 - times).float())

    def test_denoise_takes_the_end_of_a_longer_grid(self):
        sigmas = published_sigmas(10, 1.0, 0.5)
        torch.testing.assert_close(sigmas, published_sigmas(20, 1.0)[-11:])
        assert published_sigmas(10, 1.0, 0.0).shape == (0,)

    def test_a_tiny_denoise_takes_no_memory(self):
        sigmas = published_sigmas(10, 3.0, 1e-9)
        assert sigmas.shape == (11,)
        assert 0 < sigmas[0] < 1e-7
        assert sigmas[-1] == 0

    @pytest.mark.parametrize('shift', [1.0, 2.5, 6.0])
    def test_the_shift_of_a_model_is_read_from_its_sampling(self, shift):
        def percent_to_sigma(percent):
            return shift * (1 - percent) / (1 + (shift - 1) * (1 - percent))

        assert model_shift(percent_to_sigma) == pytest.approx(shift)


class TestAdams:
    @pytest.mark.parametrize('order', [1, 2, 3, 4])
    @pytest.mark.parametrize('shift', [1.0, 3.0])
    def test_it_is_the_core_s(self, order, shift):
        def velocity(x, t):
            return (2 + t) * torch.cos(3 * x) - x

        def model(x, sigma, scale):
            assert scale == 2
            s = sigma.view(-1, 1)
            return x + s * velocity(x, 1 - s)

        x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)
        seen = []
        result = sample_adams(
            model, x, published_sigmas(9, shift).double(), {'scale': 2}, seen.append, disable=True, order=order
        )
        solver = AdamsFlowSampler(9, order, timeshift=shift)
        torch.testing.assert_close(result, solver.integrate(velocity, x), atol=1e-5, rtol=1e-5)
        assert [step['i'] for step in seen] == list(range(9))
        torch.testing.assert_close(seen[0]['x'], x)

    def test_steps_of_no_length_do_nothing(self):
        def model(x, sigma):
            return x - sigma.view(-1, 1) * torch.cos(3 * x)

        x, sigmas = torch.ones(1, 3), published_sigmas(6, 2.0)
        repeated = torch.cat((sigmas[:1], sigmas[:3], sigmas[2:3], sigmas[2:], sigmas[-1:]))
        results = [sample_adams(model, x, s, disable=True, order=3) for s in (sigmas, repeated)]
        assert torch.equal(*results)
        assert torch.equal(sample_adams(model, x, sigmas[:0], disable=True), x)

    def test_sigmas_of_another_model_are_refused(self):
        with pytest.raises(ValueError, match='connect PixNerd Sigmas'):
            sample_adams(None, torch.ones(1, 3), torch.tensor([14.6, 0.0]), disable=True)

    def test_it_ends_within_a_step_when_the_callback_raises(self):
        calls = []

        def model(x, sigma):
            calls.append(sigma)
            return x * 0

        def cancel(step):
            if step['i'] == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sample_adams(model, torch.ones(1, 3), published_sigmas(9, 1.0), callback=cancel, disable=True)
        assert len(calls) == 2


class TestInterval:
    @staticmethod
    def scale_at(sigma, start, end, guider=None):
        guider = guider or SimpleNamespace(cfg=4.0)
        used = []

        def predict(x, timestep):
            used.append(getattr(guider, 'cfg', None))
            return x

        class Executor:
            class_obj = guider

            def __call__(self, *args):
                return predict(*args)

        interval_wrapper(start, end)(Executor(), torch.zeros(1), torch.tensor([sigma]))
        assert getattr(guider, 'cfg', 4.0) == 4.0
        return used[0]

    def test_guidance_is_off_outside_and_at_the_bounds(self):
        times = [0.0, 0.1, 0.11, 0.5, 0.89, 0.9, 0.95]
        scales = [self.scale_at(torch.tensor(1 - t).item(), 0.1, 0.9) for t in times]
        assert scales == [1, 1, 4, 4, 4, 1, 1]

    def test_the_first_step_is_unguided_by_default(self):
        assert self.scale_at(1.0, 0.0, 1.0) == 1
        assert self.scale_at(0.01, 0.0, 1.0) == 4

    def test_guiders_without_one_scale_are_left_alone_and_named_once(self, caplog):
        assert self.scale_at(1.0, 0.0, 1.0, SimpleNamespace(cfg1=2.0)) is None
        assert 'does not act on SimpleNamespace' in caplog.text

    def test_so_are_those_that_inherit_a_scale_they_do_not_use(self, caplog):
        class Two:
            cfg = 4.0

            def set_cfg(self, cfg1, cfg2):
                pass

        assert self.scale_at(1.0, 0.0, 1.0, Two()) == 4.0
        assert 'does not act on Two' in caplog.text
