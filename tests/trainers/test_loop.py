"""The training loop against gradient descent written in NumPy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.data.dataset import Split
from trainers.loop import WARM_UP, Batch, Diverged, Schedule, batches, fit, rate
from trainers.spectral import SpectralLinear, spectralize

CPU = torch.device("cpu")


def split(count: int, classes: int = 3) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 2, 2), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % classes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- batches


def test_a_pass_shows_every_image_once_with_its_label() -> None:
    data = split(10)
    results = list(batches(data, 4, "none", generator(), CPU))
    assert [len(batch.index) for batch in results] == [4, 4, 2]
    assert sorted(torch.cat([batch.index for batch in results]).tolist()) == list(range(10))
    for batch in results:
        assert torch.equal(batch.labels, data.labels[batch.index])
        assert torch.equal(batch.images, data.images[batch.index].float() / 255)


def test_a_last_batch_of_one_image_is_left_out() -> None:
    assert [len(batch.index) for batch in batches(split(9), 4, "none", generator(), CPU)] == [4, 4]
    assert [len(batch.index) for batch in batches(split(1, 1), 4, "none", generator(), CPU)] == [1]


def test_the_generator_alone_decides_on_the_order_and_the_augmentation() -> None:
    def seen(seed: int) -> list[Tensor]:
        data = Split(torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8), torch.arange(4))
        return [t for batch in batches(data, 2, "crop_flip", generator(seed), CPU) for t in (batch.index, batch.images)]

    torch.manual_seed(1)
    one = seen(0)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(one, seen(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, seen(1), strict=True))


# --- the schedule


def test_the_rate_rises_over_the_first_steps_then_falls_as_a_cosine() -> None:
    total = 200
    warm = round(WARM_UP * total)
    rates = [rate(step, total) for step in range(total)]
    assert rates[: warm + 1] == [pytest.approx((step + 1) / warm) for step in range(warm)] + [1.0]
    assert rates[warm + (total - warm) // 2] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx((math.pi / (total - warm)) ** 2 / 4, rel=1e-3)
    assert all(later < earlier for earlier, later in zip(rates[warm:], rates[warm + 1 :], strict=False))


def test_a_single_step_is_taken_at_the_full_rate() -> None:
    assert rate(0, 1) == 1.0


# --- training


def softmax_regression(data: Split, order: list[list[int]], schedule: Schedule, W: np.ndarray, b: np.ndarray) -> None:
    """SGD with Nesterov momentum on cross-entropy; weight decay on W (classes, pixels), not on b (classes,)."""
    x = data.images.numpy().reshape(len(data), -1) / 255
    velocity_W, velocity_b = np.zeros_like(W), np.zeros_like(b)
    for step, rows in enumerate(order):
        z = x[rows] @ W.T + b
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        p[np.arange(len(rows)), data.labels[rows].numpy()] -= 1
        gradient_W, gradient_b = p.T @ x[rows] / len(rows) + schedule.weight_decay * W, p.mean(0)
        velocity_W = schedule.momentum * velocity_W + gradient_W
        velocity_b = schedule.momentum * velocity_b + gradient_b
        learning_rate = schedule.learning_rate * rate(step, len(order))
        W -= learning_rate * (gradient_W + schedule.momentum * velocity_W)
        b -= learning_rate * (gradient_b + schedule.momentum * velocity_b)


def cross_entropy(network: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: F.cross_entropy(network(batch.images.double()), batch.labels)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_training_is_nesterovs_descent_with_decay_on_matrices_alone(momentum: float) -> None:
    data, schedule = split(30), Schedule(3, 8, 0.5, momentum, 0.1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, dtype=torch.float64))
    W, b = (p.detach().numpy().copy() for p in network.parameters())
    order_generator = generator(4)
    order = [batch.index.tolist() for _ in range(3) for batch in batches(data, 8, "none", order_generator, CPU)]
    fit(network, cross_entropy(network), data, schedule, policy="none", generator=generator(4))
    softmax_regression(data, order, schedule, W, b)
    for actual, expected in zip(network.parameters(), (W, b), strict=True):
        # the network's pixels are float32 before they are made double
        np.testing.assert_allclose(actual.detach().numpy(), expected, atol=1e-6)


def test_spectral_layers_biases_and_batch_norms_do_not_decay_and_other_matrices_do() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    spectral = spectralize(network, keep=["3"])
    method = nn.Linear(2, 2)
    assert isinstance(spectral[1], SpectralLinear)

    def nothing(batch: Batch) -> Tensor:
        return 0.0 * sum(p.sum() for m in (spectral, method) for p in m.parameters())  # type: ignore[return-value]

    before = {id(p): p.detach().clone() for m in (spectral, method) for p in m.parameters()}
    fit(
        spectral,
        nothing,
        split(8),
        Schedule(1, 8, 0.5, 0.0, 0.1),
        policy="none",
        generator=generator(),
        others=[method],
    )
    decayed = {id(spectral[3].weight), id(method.weight)}
    for p in [*spectral.parameters(), *method.parameters()]:
        # one step at full rate: w - 0.5 * 0.1 w
        torch.testing.assert_close(p, before[id(p)] * (0.95 if id(p) in decayed else 1.0))


@pytest.mark.parametrize("limit", [0.01, 100.0])
def test_the_gradient_of_all_that_is_trained_is_cut_down_to_the_norm(limit: float) -> None:
    network, method = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), nn.Linear(3, 3)

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(method(network(batch.images)), batch.labels)

    parameters = [*network.parameters(), *method.parameters()]
    before = [p.detach().clone() for p in parameters]
    (batch,) = batches(split(8), 8, "none", generator(), CPU)
    gradients = torch.autograd.grad(loss(batch), parameters)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    schedule = Schedule(1, 8, 0.5, 0.0, 0.0, max_gradient_norm=limit)
    fit(network, loss, split(8), schedule, policy="none", generator=generator(), others=[method])
    for p, old, g in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(p, old - 0.5 * g * min(1.0, limit / float(norm)), atol=1e-6, rtol=1e-4)


def test_a_methods_own_parameters_are_trained_with_the_network() -> None:
    network, method = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), nn.Linear(3, 3)
    before = method.weight.detach().clone()
    fit(
        network,
        lambda batch: F.cross_entropy(method(network(batch.images)), batch.labels),
        split(8),
        Schedule(1, 8, 0.5, 0.9, 0.0),
        policy="none",
        generator=generator(),
        others=[method],
    )
    assert not torch.equal(method.weight, before)


def test_epochs_are_reported_with_their_mean_loss() -> None:
    network, seen, losses = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), list[tuple[int, float]](), list[float]()

    def loss(batch: Batch) -> Tensor:
        value = F.cross_entropy(network(batch.images), batch.labels)
        losses.append(value.item())
        return value

    fit(
        network,
        loss,
        split(10),
        Schedule(2, 4, 0.1, 0.9, 0.0),
        policy="none",
        generator=generator(),
        on_epoch=lambda epoch, mean: seen.append((epoch, mean)),
    )
    assert [epoch for epoch, _ in seen] == [1, 2]
    np.testing.assert_allclose([mean for _, mean in seen], [np.mean(losses[:3]), np.mean(losses[3:])])


def test_what_a_report_raises_ends_the_training() -> None:
    network, epochs = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), list[int]()

    def stop(epoch: int, mean_loss: float) -> None:
        epochs.append(epoch)
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            network,
            lambda batch: F.cross_entropy(network(batch.images), batch.labels),
            split(10),
            Schedule(9, 4, 0.1, 0.9, 0.0),
            policy="none",
            generator=generator(),
            on_epoch=stop,
        )
    assert epochs == [1, 2]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training(factor: float) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    message = r"the loss must be finite, but is (nan|inf) in epoch 1; lower the learning rate \(now 0\.1\)"
    with pytest.raises(Diverged, match=message):
        fit(
            network,
            lambda batch: F.cross_entropy(network(batch.images), batch.labels) * factor,
            split(10),
            Schedule(2, 10, 0.1, 0.9, 0.0),
            policy="none",
            generator=generator(),
        )


def test_training_on_more_images_a_batch_than_there_are_takes_them_all() -> None:
    network, sizes = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), list[int]()

    def loss(batch: Batch) -> Tensor:
        sizes.append(len(batch.index))
        return F.cross_entropy(network(batch.images), batch.labels)

    fit(network, loss, split(5), Schedule(2, 64, 0.1, 0.9, 0.0), policy="none", generator=generator())
    assert sizes == [5, 5]
