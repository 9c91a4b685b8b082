import pytest
import torch
from torch import nn
from vector_quantize_pytorch import SimVQ as ReferenceSimVQ

from vqseg.losses import codebook_loss
from vqseg.networks import quantizer as module
from vqseg.networks.quantizer import SimVQ, nearest_codes, perplexity, straight_through


def test_equals_the_reference_implementation_on_the_same_table():
    torch.manual_seed(0)
    ours = SimVQ(size=64, dim=8)
    reference = ReferenceSimVQ(
        dim=8, codebook_size=64, codebook_transform=nn.Linear(8, 8, bias=False), rotation_trick=False
    )
    with torch.no_grad():
        reference.frozen_codebook.copy_(ours.table)
        reference.code_transform.weight.copy_(ours.map.weight)
    tokens = torch.randn(3, 50, 8, requires_grad=True)
    expected, indices, loss = reference(tokens)
    found = ours(tokens)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(straight_through(tokens, found.codes), expected)
    torch.testing.assert_close(codebook_loss(tokens, found.codes, commitment=0.25), loss)
    ours_gradient = torch.autograd.grad(codebook_loss(tokens, found.codes, commitment=0.25), [tokens, ours.map.weight])
    gradient = torch.autograd.grad(loss, [tokens, reference.code_transform.weight])
    torch.testing.assert_close(ours_gradient, gradient)


def test_straight_through_gradient_is_the_identity():
    tokens, codes = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 5, 3, requires_grad=True)
    weights = torch.randn(2, 5, 3)
    result = straight_through(tokens, codes)
    torch.testing.assert_close(result, codes)
    to_tokens, to_codes = torch.autograd.grad((result * weights).sum(), [tokens, codes], allow_unused=True)
    torch.testing.assert_close(to_tokens, weights)
    assert to_codes is None


def test_usage_counts_training_passes_only():
    quantizer = SimVQ(size=16, dim=4)
    tokens = torch.randn(2, 30, 4)
    quantizer.eval()(tokens)
    assert quantizer.usage.sum() == 0
    found = quantizer.train()(tokens)
    assert torch.equal(quantizer.usage, torch.bincount(found.indices.flatten(), minlength=16))


def test_the_table_is_frozen_and_the_map_learns():
    quantizer = SimVQ(size=16, dim=4)
    assert [name for name, _ in quantizer.named_parameters()] == ["map.weight"]
    tokens = torch.randn(2, 30, 4)
    codebook_loss(tokens, quantizer(tokens).codes, commitment=0.25).backward()
    assert quantizer.map.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("scores", [1, 64, 2**22])
def test_chunks_do_not_change_the_nearest_code(monkeypatch, scores):
    monkeypatch.setattr(module, "_SCORES_AT_A_TIME", {"cpu": scores})
    tokens, codebook = torch.randn(100, 6), torch.randn(32, 6)
    expected = torch.cdist(tokens.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest_codes(tokens, codebook), expected)


def test_codebook_stays_in_float32_under_autocast():
    quantizer = SimVQ(size=16, dim=4)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(torch.randn(1, 5, 4))
    assert found.codebook.dtype == found.codes.dtype == torch.float32


@pytest.mark.parametrize("used", [1, 3, 8])
def test_perplexity_counts_codes_that_are_used_alike(used):
    assert perplexity(torch.tensor([5] * used + [0] * 4)) == pytest.approx(used)


def test_perplexity_lies_between_one_and_the_codes_used():
    counts = torch.tensor([1, 0, 90, 9, 400])
    assert 1 < perplexity(counts) < 4
    assert perplexity(counts) == pytest.approx(perplexity(counts * 7))
    assert perplexity(counts) > perplexity(torch.tensor([1, 0, 9, 9, 4000]))


def test_the_perplexity_of_nothing_is_none_of_the_codes():
    assert perplexity(torch.zeros(4, dtype=torch.int64)) == 0
