"""The shipped digits."""

from __future__ import annotations

import pytest
import torch

from variate.data import mnist


@pytest.mark.parametrize(("split", "rows"), [("train", 8000), ("validation", 1000), ("test", 1000), ("all", 10000)])
def test_split_sizes_and_dtypes(split, rows):
    images, labels = mnist(split)
    assert images.shape == (rows, 28, 28) and images.dtype == torch.uint8
    assert labels.shape == (rows,) and labels.dtype == torch.int64


def test_splits_are_all_in_order():
    parts = [mnist(split) for split in ("train", "validation", "test")]
    everything = mnist("all")
    assert torch.equal(torch.cat([part.images for part in parts]), everything.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), everything.labels)


def test_these_are_digits():
    images, labels = mnist("all")
    assert labels.bincount(minlength=10).min() > 800
    assert images.amax() == 255 and 25 < images.float().mean() < 45
    # The mean images tell ones from zeros: a one is dark in the ring where a zero is bright.
    means = torch.stack([images[labels == digit].float().mean(0) for digit in range(10)])
    assert means[0, 14, 14] < 30 and means[1, 14, 14] > 150


def test_default_is_train_and_calls_do_not_share_memory():
    first = mnist()
    expected = first.images.clone()
    first.images.zero_()
    assert torch.equal(mnist("train").images, expected)


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"split: expected one of 'train'.*got 'valid'"):
        mnist("valid")
