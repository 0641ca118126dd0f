"""Statistics after a cut: means over the batches that were shown, and nothing else touched."""

import pytest
import torch
from torch import nn

from spaces import Student
from trainers.families import build
from trainers.spectral import recalibrate
from trainers.store import weights_bytes


def test_statistics_become_the_mean_over_all_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    second = network[3]
    assert isinstance(second, nn.BatchNorm2d)
    second.running_mean = torch.full((2,), 100.0)
    images = [torch.randn(4, 3, 5, 5, generator=generator) for _ in range(3)]
    recalibrate(network, images)
    first = network[0]
    assert isinstance(first, nn.BatchNorm2d)
    torch.testing.assert_close(first.running_mean, torch.stack([i.mean((0, 2, 3)) for i in images]).mean(0))
    torch.testing.assert_close(first.running_var, torch.stack([i.var((0, 2, 3)) for i in images]).mean(0))
    # the second sees what the first makes of each batch by that batch, and no dropout
    seen = [
        network[2]((i - i.mean((0, 2, 3), keepdim=True)) / (i.var((0, 2, 3), False, keepdim=True) + 1e-5).sqrt())
        for i in images
    ]
    torch.testing.assert_close(second.running_mean, torch.stack([s.mean((0, 2, 3)) for s in seen]).mean(0).detach())


@pytest.mark.parametrize("training", [True, False])
def test_weights_modes_and_momenta_stay_as_they_are(training: bool) -> None:
    network = build(Student(depth=8, width=0.1), (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    network.train(training)
    network.get_submodule("groups.0").eval()
    modes = [module.training for module in network.modules()]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    recalibrate(network, [torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))])
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert all(m.momentum == 0.1 for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_without_batch_norms_nothing_happens() -> None:
    network = build(Student(family="mlp", depth=3), (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    before, shown = weights_bytes(network), []
    recalibrate(network, (shown.append(1) or torch.rand(4, 1, 8, 8) for _ in range(3)))  # type: ignore[func-returns-value]
    assert weights_bytes(network) == before
    assert shown == []
