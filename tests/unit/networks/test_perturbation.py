import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from vqseg.networks.perturbation import (
    QPM,
    draw_replacements,
    effective_codes,
    fit_temperature,
    kernel_logits,
    kl_from_uniform,
)
from vqseg.training import trainer

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


@pytest.mark.parametrize("effective", [1.5, 4.0, 15.0])
def test_mixed_precision_changes_no_draw(effective):
    codes = codebook() * torch.tensor([8.0, 1, 1, 1, 1, 1]) + 3
    temperature = fit_temperature(codes, effective)
    indices = torch.arange(SIZE).repeat(50)
    exact = draw(indices, codes, 0.7, temperature)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(draw(indices, codes, 0.7, temperature), exact)


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
        assert qpm.strength(codebook() * scale).replacement_codes == pytest.approx(6, rel=1e-2)


@pytest.mark.parametrize("growth", [1.01, 1.02])
@pytest.mark.parametrize("replacement_codes", [4.0, 16.0])
def test_the_effective_number_stays_while_the_codes_grow_16_fold(replacement_codes: float, growth: float) -> None:
    """Calibrated as often as in a training: what is drawn from stays within 20 % of the setting at every step."""
    codes, qpm = codebook(size=256, dim=8), QPM(0.7, replacement_codes)
    found = []
    for step in range(round(math.log(16) / math.log(growth))):
        if step % trainer._CALIBRATE_EVERY == 0:
            qpm.calibrate(codes)
        found.append(qpm.strength(codes).replacement_codes)
        codes = codes * growth
    assert min(found) > 0.8 * replacement_codes, f"it fell to {min(found)}"
    assert max(found) < 1.2 * replacement_codes


def test_the_papers_kernel_goes_from_uniform_to_the_nearest_code_while_the_codes_grow_16_fold() -> None:
    """The control of the law above: squared distance, temperature fixed at 1."""
    codes = codebook(size=256, dim=8) * 0.2
    found = [effective_codes(codes * growth, 1.0) for growth in (1, 2, 4, 8, 16)]
    assert found[0] > 0.9 * 255
    assert found[-1] < 10
    assert found == sorted(found, reverse=True)


@given(
    seed=st.integers(0, 100),
    rate=st.floats(0, 1),
    temperature=st.floats(0.5, 1e4),
    shape=st.sampled_from([(2, 1), (7, 3), (40, 6), (130, 2)]),
)
@settings(deadline=None, max_examples=20)
def test_kl_from_uniform_equals_its_formula(seed: int, rate: float, temperature: float, shape: tuple[int, int]) -> None:
    """Every code's share after the perturbation, from the whole transition matrix."""
    size, dim = shape
    codes = codebook(seed, size, dim)
    moved = torch.stack([naive_distribution(code, codes, temperature) for code in range(size)])
    transition = (1 - rate) * torch.eye(size, dtype=torch.float64) + rate * moved
    received = transition.mean(0).clamp(min=1e-300)
    expected = -(size * received).log().mean()
    found = kl_from_uniform(codes, rate, temperature)
    assert found == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
    assert found > -1e-6


@given(seed=st.integers(0, 100), rate=st.floats(0, 1))
@settings(deadline=None, max_examples=10)
def test_kl_from_uniform_is_nothing_without_perturbation_and_for_a_uniform_kernel(seed: int, rate: float) -> None:
    assert kl_from_uniform(codebook(seed), 0.0, 1.0) == pytest.approx(0, abs=1e-9)
    assert kl_from_uniform(codebook(seed), rate, math.inf) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-6, 1e-2, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_kl_from_uniform_is_finite_even_when_every_code_is_replaced(scale: float, temperature: float) -> None:
    """A remote code that no other is replaced by, too."""
    codes = codebook() * scale
    codes[0] += 1000 * scale
    assert 0 <= kl_from_uniform(codes, 1.0, temperature) + 1e-6 < 1000


def test_stronger_perturbation_is_farther_from_uniform() -> None:
    codes = codebook()
    by_rate = [kl_from_uniform(codes, rate, 1.0) for rate in (0.1, 0.4, 0.7, 1.0)]
    assert by_rate == sorted(by_rate)
    assert by_rate[0] < by_rate[-1]


def test_identical_codes_do_not_break_the_draw():
    same = torch.zeros(SIZE, 4)
    replaced = draw(torch.zeros(100, dtype=torch.int64), same, 1.0, fit_temperature(same, 5))
    assert not bool((replaced == 0).any())


def test_the_draw_follows_the_generator():
    indices, codes = torch.randint(SIZE, (500,)), codebook()
    assert torch.equal(draw(indices, codes, 0.7, 1.0, 5), draw(indices, codes, 0.7, 1.0, 5))
    assert not torch.equal(draw(indices, codes, 0.7, 1.0, 5), draw(indices, codes, 0.7, 1.0, 6))
