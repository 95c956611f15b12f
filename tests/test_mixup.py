import pytest
import torch
from scipy import stats

from tricklab.mixup import cutmix, draw_box, draw_lam, identity, mixup
from tricklab.randomness import generator


def batch(size=8, height=9, width=7):
    images = torch.arange(size, dtype=torch.float)[:, None, None, None].expand(size, 3, height, width).clone()
    return images, torch.eye(size)


def test_mixup_is_its_formula():
    images, targets = torch.randn(8, 3, 5, 5), torch.eye(8)
    mixed, mixed_targets = mixup(images, targets, generator(0, "mix"), alpha=0.7)
    source = generator(0, "mix")
    partner, lam = torch.randperm(8, generator=source), draw_lam(0.7, source)
    assert torch.equal(mixed, lam * images + (1 - lam) * images[partner])
    assert torch.equal(mixed_targets, lam * targets + (1 - lam) * targets[partner])
    assert 0 < lam < 1


def test_cutmix_weighs_targets_by_the_pixels_pasted():
    for n in range(200):
        images, targets = batch()
        mixed, mixed_targets = cutmix(images, targets, generator(0, "mix", n), alpha=1.0)
        own = (mixed == images).float().mean((1, 2, 3))
        moved = torch.randperm(8, generator=generator(0, "mix", n)) != torch.arange(8)
        assert torch.allclose(mixed_targets.diagonal()[moved], own[moved], atol=1e-6)
        assert torch.equal(mixed, mixed.round())  # pasted, not blended
        assert torch.allclose(mixed_targets.sum(1), torch.ones(8))


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_batch_size(mix, size):
    images, targets = batch(size)
    mixed, mixed_targets = mix(images, targets, generator(0, "mix"), alpha=1.0)
    assert mixed.shape == images.shape
    assert torch.allclose(mixed_targets.sum(1), torch.ones(size))


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_alpha_0_is_off(mix):
    images, targets = torch.randn(8, 3, 5, 5), torch.eye(8)
    for ours, plain in zip(mix(images, targets, generator(0, "mix"), alpha=0), identity(images, targets, None)):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2, 1.0, 8.0])
def test_lam_is_beta_distributed(alpha):
    source = generator(0, "mix")
    lams = [draw_lam(alpha, source) for _ in range(4000)]
    if alpha < 0.1:  # nearly all of them lie closer to 0 or 1 than a double can tell
        assert sum(lams) / len(lams) == pytest.approx(0.5, abs=0.03)
        assert all(0 <= lam <= 1 for lam in lams)
    else:
        assert stats.kstest(lams, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize(("lam", "area"), [(1.0, 0), (0.75, 0.25)])
def test_box_has_the_area_when_it_is_not_cut_off(lam, area):
    areas = []
    for n in range(100):
        y0, y1, x0, x1 = draw_box(40, 40, lam, generator(0, "box", n))
        assert 0 <= y0 <= y1 <= 40
        assert 0 <= x0 <= x1 <= 40
        areas.append((y1 - y0) * (x1 - x0) / 1600)
    assert max(areas) == pytest.approx(area)


def test_training_accuracy_is_named_for_the_mixing(run):
    assert "train/acc" in run("debug=batch", folder="off").folder.joinpath("metrics.csv").read_text().split("\n")[
        0
    ].split(",")
    header = run("debug=batch", "mixup=on", folder="on").folder.joinpath("metrics.csv").read_text().split("\n")[0]
    assert "train/acc_mixed" in header.split(",")
    assert "train/acc" not in header.split(",")
