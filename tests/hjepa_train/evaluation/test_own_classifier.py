"""Counting right and wrong, against counting by hand."""

import math

import pytest
import torch

from hjepa_train.evaluation.own_classifier import by_class, confusion, percent_right

NAMES = ("ant", "bee", "cat")
TRUTH = torch.tensor([0, 0, 0, 2, 2, -1])
SAID = torch.tensor([[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 1, 2]])


def test_percent_right_counts_images_whose_class_is_known() -> None:
    assert percent_right(SAID, TRUTH) == pytest.approx(100 * 3 / 5)
    assert percent_right(SAID, TRUTH, 2) == pytest.approx(100 * 4 / 5)
    assert percent_right(SAID, TRUTH, 5) == 100
    assert math.isnan(percent_right(SAID, torch.full((6,), -1)))


def test_each_class_has_its_own_row_and_what_it_is_taken_for() -> None:
    ant, cat = by_class(SAID, TRUTH, NAMES)
    assert ant == {
        "class": "ant",
        "images": 3,
        "right": pytest.approx(100 / 3),
        "taken_for": "bee",
        "times": 2,
    }
    assert cat == {"class": "cat", "images": 2, "right": 100}


def test_pairs_are_counted_once_each() -> None:
    assert confusion(SAID, TRUTH) == [[0, 0, 1], [0, 1, 2], [2, 2, 2]]
