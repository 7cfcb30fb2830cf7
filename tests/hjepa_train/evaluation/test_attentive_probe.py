"""The attentive probe beside PyTorch's attention, and on features that an average drowns."""

import pytest
import torch
from torch import Tensor, nn

from hjepa_train.evaluation.attentive_probe import LEARNING_RATES, AttentiveHead, attentive_probe, fit_heads, forward
from hjepa_train.evaluation.linear_knn_probes import linear_probe


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(width: int, num_classes: int, seed: int) -> AttentiveHead:
    """A head in which no part is zero."""
    head = AttentiveHead(width, num_classes, drawn(seed))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn(seed + parameter.numel())) * 0.3)
    return head


@torch.no_grad()
def test_it_is_multi_head_cross_attention_of_one_query() -> None:
    heads = [filled(96, 5, seed) for seed in (1, 2)]
    assert heads[0].num_heads == 3
    tokens = torch.randn(4, 7, 96, generator=drawn(0))
    logits = forward(heads, tokens)
    for number, head in enumerate(heads):
        theirs = nn.MultiheadAttention(96, 3, batch_first=True)
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(96), head.key_DD, head.value_DD]))
        theirs.in_proj_bias.zero_()
        theirs.in_proj_bias[192:] = head.value_D
        theirs.out_proj.weight.copy_(torch.eye(96))
        theirs.out_proj.bias.zero_()
        pooled, _ = theirs(head.query_D.expand(4, 1, 96), tokens, tokens)
        expected = pooled[:, 0] @ head.head_CD.T + head.head_C
        torch.testing.assert_close(logits[:, number], expected, atol=1e-5, rtol=1e-5)


def test_heads_that_are_trained_together_are_each_what_they_are_alone() -> None:
    tokens = torch.randn(40, 5, 32, generator=drawn(0))
    labels = torch.randint(3, (40,), generator=drawn(1))
    rows = torch.arange(40)
    together = fit_heads(lambda index: tokens[index], labels, rows, 3, (1e-3, 1e-2))
    for number, lr in enumerate((1e-3, 1e-2)):
        [alone] = fit_heads(lambda index: tokens[index], labels, rows, 3, (lr,))
        for ours, theirs in zip(together[number].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)


def one_telling_token(seed: int, num_images: int) -> tuple[Tensor, Tensor]:
    """Noise in all tokens but one, at a random position: that has a mark in one dimension and the class in others."""
    draw = drawn(seed)
    tokens = torch.randn(num_images, 32, 32, generator=draw)
    labels = torch.randint(4, (num_images,), generator=draw)
    marked = torch.randint(32, (num_images,), generator=draw)
    telling = tokens[torch.arange(num_images), marked] * 0.1
    telling[:, 0] = 6
    telling[torch.arange(num_images), 1 + labels] = 3
    tokens[torch.arange(num_images), marked] = telling
    return tokens, labels


def test_it_finds_a_label_that_sits_in_one_random_token_where_the_average_does_not() -> None:
    bank, labels = one_telling_token(0, 1500)
    test, test_labels = one_telling_token(1, 500)
    pooled, _ = linear_probe(bank.mean(1), labels, test.mean(1), test_labels)
    accuracy, lr = attentive_probe(lambda index: bank[index], labels, lambda index: test[index], test_labels)
    assert lr in LEARNING_RATES
    assert pooled < 75
    assert accuracy > 95


@pytest.mark.parametrize("width", [24, 96, 384, 768])
def test_widths_of_backbones_have_a_number_of_heads_that_divides_them(width: int) -> None:
    head = AttentiveHead(width, 2, drawn(0))
    assert width % head.num_heads == 0
    assert forward([head], torch.randn(2, 3, width)).shape == (2, 1, 2)
