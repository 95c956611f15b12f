"""How far the confidence of a network can be believed."""

import torch
from torch import Tensor


def gaps(logits: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    """Return by how much accuracy exceeds confidence, summed over the images of each bin.

    The sum of their absolute values over the number of images is the expected calibration error (Guo et al., On
    calibration of modern neural networks, arXiv 1706.04599); sums of several processes may be added before that.

    Args:
        logits: [N, K].
        labels: class indices [N].
        bins: of equal width; each holds its upper end, so that a confidence of 1 is in the last.
    """
    confidence, predicted = logits.float().softmax(1).max(1)
    place = torch.bucketize(confidence, torch.arange(1, bins) / bins)
    gap = (predicted == labels).double() - confidence.double()
    return torch.zeros(bins, dtype=torch.double).index_add_(0, place, gap)
