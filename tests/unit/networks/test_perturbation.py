import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from vqseg.networks.perturbation import QPM, draw_replacements, effective_codes, fit_temperature, kernel_logits

SIZE = 40


def codebook(seed: int = 0, size: int = SIZE, dim: int = 6) -> torch.Tensor:
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))


def draw(indices: torch.Tensor, codes: torch.Tensor, rate: float, temperature: float, seed: int = 0) -> torch.Tensor:
    return draw_replacements(indices, codes, rate, temperature, torch.Generator().manual_seed(seed))


def naive_distribution(code: int, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    """pi(. | code) given a replacement, written as in the paper, in float64."""
    weight = (-(codes.double() - codes[code].double()).square().sum(1) / temperature).exp()
    weight[code] = 0
    return weight / weight.sum()


def p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Chi-squared test with classes of few expected draws put together."""
    expected = expected.double() * counts.sum()
    order = expected.argsort()
    groups = (expected[order].cumsum(0) / 10).floor().unique_consecutive(return_inverse=True)[1]
    total = int(groups.max()) + 1
    found = torch.zeros(total, dtype=torch.float64).index_add_(0, groups, counts[order].double())
    wanted = torch.zeros(total, dtype=torch.float64).index_add_(0, groups, expected[order])
    keep = wanted >= 5
    if (~keep).any():
        found = torch.cat([found[keep], found[~keep].sum()[None]])
        wanted = torch.cat([wanted[keep], wanted[~keep].sum()[None]])
        keep = wanted > 1e-9
        found, wanted = found[keep], wanted[keep]
    return float(chisquare(found.numpy(), (wanted * found.sum() / wanted.sum()).numpy()).pvalue)


@given(st.integers(0, 100), st.sampled_from([0.0, 1.0]), st.sampled_from([1e-3, 0.5, 5.0, math.inf]))
@settings(deadline=None, max_examples=30)
def test_rate_zero_is_the_identity_and_a_replacement_is_never_the_same_code(seed, rate, temperature):
    codes = codebook(seed)
    indices = torch.randint(SIZE, (2, 300), generator=torch.Generator().manual_seed(seed))
    replaced = draw(indices, codes, rate, temperature, seed)
    assert replaced.shape == indices.shape
    assert replaced.min() >= 0
    assert replaced.max() < SIZE
    assert bool((replaced == indices).all()) if rate == 0 else not bool((replaced == indices).any())


@pytest.mark.parametrize("effective", [1.5, 4.0, 15.0, 38.0, SIZE])
def test_frequencies_fit_the_stated_distribution(effective):
    """Over narrow kernels (inversion) and wide ones (rejection), for tokens of three codes in one batch."""
    codes = codebook()
    temperature = fit_temperature(codes, effective)
    indices = torch.tensor([3, 17, 39]).repeat_interleave(20_000)
    replaced = draw(indices, codes, 1.0, temperature)
    for part, code in zip(replaced.split(20_000), (3, 17, 39), strict=True):
        counts = torch.bincount(part, minlength=SIZE)
        assert p_value(counts, naive_distribution(code, codes, temperature)) > 1e-4


def test_a_truncated_neighbour_table_fails_the_same_test():
    """The control: sampling among the 8 nearest codes alone is another distribution."""
    codes = codebook()
    temperature = fit_temperature(codes, 15)
    exact = naive_distribution(3, codes, temperature)
    truncated = torch.where(exact >= exact.sort(descending=True).values[7], exact, 0)
    drawn = torch.multinomial(truncated, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    assert p_value(torch.bincount(drawn, minlength=SIZE), exact) < 1e-4


def test_more_codes_than_a_block_are_drawn_alike():
    codes = codebook(size=1000, dim=3)
    temperature = fit_temperature(codes, 30)
    replaced = draw(torch.full((200_000,), 700), codes, 1.0, temperature)
    assert p_value(torch.bincount(replaced, minlength=1000), naive_distribution(700, codes, temperature)) > 1e-4


@given(rate=st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=10)
def test_the_rate_is_the_share_of_replaced_codes(rate):
    indices = torch.randint(SIZE, (20_000,), generator=torch.Generator().manual_seed(1))
    replaced = draw(indices, codebook(), rate, 1.0)
    share = float((replaced != indices).float().mean())
    assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / 20_000)


@pytest.mark.parametrize("effective", [1.5, 4.0, 15.0, 38.0])
def test_the_fitted_temperature_gives_the_effective_number_of_codes(effective):
    codes = codebook()
    temperature = fit_temperature(codes, effective)
    assert effective_codes(codes, temperature) == pytest.approx(effective, rel=1e-3)
    kernels = [naive_distribution(code, codes, temperature) for code in range(SIZE)]
    entropy = torch.stack([-(p * p.clamp(min=1e-300).log()).sum() for p in kernels])
    assert math.exp(entropy.mean()) == pytest.approx(effective, rel=1e-3)


@given(scale=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=15)
def test_rescaling_the_codebook_does_not_change_the_kernel(scale):
    codes = codebook()
    chosen = torch.arange(SIZE)
    kernel = kernel_logits(chosen, codes, fit_temperature(codes, 8)).softmax(1)
    rescaled = kernel_logits(chosen, codes * scale, fit_temperature(codes * scale, 8)).softmax(1)
    torch.testing.assert_close(kernel, rescaled, atol=1e-3, rtol=1e-2)


def test_a_fixed_temperature_drifts_with_the_scale_as_in_the_paper():
    codes = codebook()
    assert effective_codes(codes * 0.01, 1.0) > 0.99 * (SIZE - 1)
    assert effective_codes(codes * 8, 1.0) < 1.2


def test_the_module_follows_the_codebook_when_it_is_calibrated():
    qpm = QPM(rate=0.5, replacement_codes=6)
    for scale in (0.1, 1.0, 30.0):
        qpm.calibrate(codebook() * scale)
        assert effective_codes(codebook() * scale, float(qpm.temperature)) == pytest.approx(6, rel=1e-2)


def test_identical_codes_do_not_break_the_draw():
    same = torch.zeros(SIZE, 4)
    replaced = draw(torch.zeros(100, dtype=torch.int64), same, 1.0, fit_temperature(same, 5))
    assert not bool((replaced == 0).any())


def test_the_draw_follows_the_generator():
    indices, codes = torch.randint(SIZE, (500,)), codebook()
    assert torch.equal(draw(indices, codes, 0.7, 1.0, 5), draw(indices, codes, 0.7, 1.0, 5))
    assert not torch.equal(draw(indices, codes, 0.7, 1.0, 5), draw(indices, codes, 0.7, 1.0, 6))
