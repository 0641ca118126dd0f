"""Spectral layers against the operator of the paper, against dense matrices, and against the layers they replace."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from spaces import Student
from trainers.families import build
from trainers.spectral import SpectralConv2d, SpectralLinear, cut, fold, plan, spectral_penalty, spectralize, trace
from trainers.spectral.layers import spectral_layers

Array = np.ndarray


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(layer: SpectralLinear | SpectralConv2d) -> None:
    """Eigenvalues of both sides, eigenvectors and bias drawn anew."""
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(numbers(*parameter.shape, seed=index + 1))


def array(tensor: Tensor) -> Array:
    values: Array = tensor.detach().numpy()
    return values


def test_a_dense_layers_weight_is_the_block_of_the_papers_operator() -> None:
    layer = SpectralLinear(nn.Linear(5, 3, dtype=torch.float64), train_inputs=True)
    scrambled(layer)
    # A = Phi Lambda Phi^-1 over inputs and outputs together, Phi the identity with one block of eigenvector entries
    phi = np.eye(8)
    phi[5:, :5] = array(layer.eigenvectors)
    spectrum = np.concatenate([array(layer.eigenvalues_in), array(layer.eigenvalues_out)])
    operator = phi @ np.diag(spectrum) @ np.linalg.inv(phi)
    np.testing.assert_allclose(array(layer.weight), operator[5:, :5], atol=1e-12)
    x = numbers(4, 5)
    assert layer.bias is not None
    np.testing.assert_allclose(array(layer(x)), array(x) @ operator[5:, :5].T + array(layer.bias), atol=1e-12)


def convolved(x: Array, layer: SpectralConv2d) -> Array:
    """The convolution by loops, with w_ij = (lambda_in_j - lambda_out_i) phi_ij; x: (B, inputs, H, W)."""
    phi, lambda_in, lambda_out = (array(p) for p in (layer.eigenvectors, layer.eigenvalues_in, layer.eigenvalues_out))
    assert isinstance(layer.padding, tuple)
    (ph, pw), (sh, sw), (dh, dw) = layer.padding, layer.stride, layer.dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    outputs, of_group, kh, kw = phi.shape
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((len(x), outputs, height, width))
    for i in range(outputs):
        for place in range(of_group):
            j = i // (outputs // layer.groups) * of_group + place
            for a in range(kh):
                for b in range(kw):
                    seen = x[:, j, a * dh : a * dh + height * sh : sh, b * dw : b * dw + width * sw : sw]
                    y[:, i] += (lambda_in[j] - lambda_out[i]) * phi[i, place, a, b] * seen[:, :height, :width]
    return y if layer.bias is None else y + array(layer.bias)[:, None, None]


torch.manual_seed(0)
CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64),
    nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 2), bias=False, dtype=torch.float64),
    nn.Conv2d(4, 6, 3, dilation=2, groups=2, dtype=torch.float64),
    nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=4, bias=False, dtype=torch.float64),
]


@pytest.mark.parametrize("train_inputs", [False, True])
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_a_convolution_is_that_of_loops_over_the_equation(conv: nn.Conv2d, train_inputs: bool) -> None:
    layer = SpectralConv2d(conv, train_inputs=train_inputs)
    scrambled(layer)
    x = numbers(2, 4, 9, 7)
    np.testing.assert_allclose(array(layer(x)), convolved(array(x), layer), atol=1e-12)


LAYERS = [*CONVOLUTIONS, nn.Conv2d(4, 4, 3, padding="same", dtype=torch.float64), nn.Linear(9, 5, dtype=torch.float64)]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_spectral_layer_begins_as_the_layer_it_replaces(layer: nn.Module) -> None:
    x = numbers(2, 4, 9, 9)
    model = nn.Sequential(copy.deepcopy(layer))
    assert torch.equal(spectralize(model)(x), model(x))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_folded_layer_is_an_ordinary_one_that_computes_the_same(layer: nn.Module) -> None:
    x = numbers(2, 4, 9, 9)
    spectral = spectralize(nn.Sequential(copy.deepcopy(layer)))
    assert isinstance(spectral[0], SpectralLinear | SpectralConv2d)
    scrambled(spectral[0])
    ordinary = fold(spectral)
    assert type(ordinary[0]) is type(layer)
    assert [p.shape for p in ordinary.parameters()] == [p.shape for p in layer.parameters()]
    assert torch.equal(ordinary(x), spectral(x))


@pytest.mark.parametrize("family", ["resnet", "mlp"])
def test_spectralizing_replaces_every_layer_but_those_kept_and_leaves_the_original(family: str) -> None:
    student = Student(family=family, depth=8, width=0.125)
    network = build(student, (1, 8, 8), 10, generator=torch.Generator().manual_seed(0)).eval()
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    spectral = spectralize(network, keep=network.heads)
    assert [name for name, _ in spectral_layers(spectral)] == [name for name in names if name not in network.heads]
    assert type(spectral.get_submodule(network.heads[0])) is nn.Linear
    assert list(spectral_layers(network)) == []
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(spectral(images), network(images))
    assert torch.equal(fold(spectral)(images), network(images))


def test_by_default_eigenvectors_and_outgoing_eigenvalues_are_trained_as_in_the_paper() -> None:
    layer = SpectralLinear(nn.Linear(3, 2))
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {
        "eigenvectors",
        "eigenvalues_out",
        "bias",
    }
    assert torch.equal(layer.eigenvalues_in, torch.zeros(3))
    assert torch.equal(layer.eigenvalues_out, torch.ones(2))
    direct = SpectralLinear(nn.Linear(3, 2), train_outputs=False)
    assert not direct.eigenvalues_out.requires_grad


def test_a_units_norm_is_its_eigenvalue_times_the_length_of_its_eigenvector() -> None:
    layer = SpectralConv2d(nn.Conv2d(3, 5, 3, dtype=torch.float64))
    with torch.no_grad():
        layer.eigenvalues_out.copy_(numbers(5))
    phi, eigenvalues = array(layer.eigenvectors), array(layer.eigenvalues_out)
    expected = [abs(eigenvalues[i]) * np.sqrt((phi[i] ** 2).sum()) for i in range(5)]
    np.testing.assert_allclose(array(layer.unit_norms()), expected, rtol=1e-12)


def test_the_penalty_is_the_sum_of_squares_of_trained_spectral_parts_alone() -> None:
    model = nn.Sequential(
        SpectralLinear(nn.Linear(4, 3, dtype=torch.float64)),
        SpectralLinear(nn.Linear(3, 3, dtype=torch.float64), train_inputs=True, train_outputs=False),
        nn.Linear(3, 2, dtype=torch.float64),
    )
    first, second = model[0], model[1]
    assert isinstance(first, SpectralLinear)
    assert isinstance(second, SpectralLinear)
    scrambled(first)
    scrambled(second)
    actual = spectral_penalty(model, eigenvector_l2=0.01, eigenvalue_l2=5e-4)
    phi = (array(first.eigenvectors) ** 2).sum() + (array(second.eigenvectors) ** 2).sum()
    eigenvalues = (array(first.eigenvalues_out) ** 2).sum() + (array(second.eigenvalues_in) ** 2).sum()
    np.testing.assert_allclose(actual.item(), 0.01 * phi + 5e-4 * eigenvalues, rtol=1e-12)
    actual.backward()  # type: ignore[no-untyped-call]
    assert first.eigenvectors.grad is not None
    # twice the coefficient: PyTorch's weight_decay of 0.01 would be once
    np.testing.assert_allclose(array(first.eigenvectors.grad), 0.02 * array(first.eigenvectors), rtol=1e-12)


def test_several_models_side_by_side_have_the_penalties_that_each_has_alone() -> None:
    models = [SpectralLinear(nn.Linear(4, 3, dtype=torch.float64)) for _ in range(2)]
    for model in models:
        scrambled(model)

    def penalty(model: nn.Module) -> Tensor:
        return spectral_penalty(model, eigenvector_l2=0.01, eigenvalue_l2=5e-4)

    class Penalty(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return penalty(self.model)

    of_one = Penalty(models[0])
    parameters, _ = stack_module_state([Penalty(model) for model in models])
    actual = torch.vmap(lambda own: functional_call(of_one, own, ()))(parameters)
    expected = torch.stack([penalty(model) for model in models])
    assert float(expected.detach().min()) > 0
    torch.testing.assert_close(actual, expected)
    (gradient,) = torch.autograd.grad(actual.sum(), [parameters["model.eigenvectors"]])
    torch.testing.assert_close(gradient, 0.02 * parameters["model.eigenvectors"])


def test_a_model_without_spectral_layers_has_no_penalty() -> None:
    assert spectral_penalty(nn.Linear(2, 2), eigenvector_l2=1.0, eigenvalue_l2=1.0).item() == 0.0


def test_the_penalty_is_a_group_lasso_of_the_geometric_mean_of_its_coefficients() -> None:
    # over all ways of writing w = -lambda phi the least penalty is 2 sqrt(ab) ||w||, at lambda^2 = sqrt(a/b) ||w||
    a, b = 0.01, 5e-4
    w = numbers(1, 6)
    norm = float(w.norm())

    def penalty(eigenvalue: float) -> float:
        layer = SpectralLinear(nn.Linear(6, 1, dtype=torch.float64))
        with torch.no_grad():
            layer.eigenvectors.copy_(-w / eigenvalue)
            layer.eigenvalues_out.fill_(eigenvalue)
        assert torch.allclose(layer.weight, w)
        return spectral_penalty(layer, eigenvector_l2=a, eigenvalue_l2=b).item()

    least = min(penalty(eigenvalue) for eigenvalue in np.geomspace(0.1, 100, 400))
    assert least >= 2 * np.sqrt(a * b) * norm * (1 - 1e-12)
    np.testing.assert_allclose(least, 2 * np.sqrt(a * b) * norm, rtol=1e-3)  # as fine as the grid
    np.testing.assert_allclose(penalty(np.sqrt(np.sqrt(a / b) * norm)), 2 * np.sqrt(a * b) * norm, rtol=1e-9)


def test_a_padding_that_would_be_lost_is_refused() -> None:
    with pytest.raises(ValueError, match="padding_mode of a spectral convolution must be 'zeros', but got 'reflect'"):
        SpectralConv2d(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))


PARTS = ("eigenvalues_in", "eigenvalues_out", "eigenvectors")


@pytest.mark.parametrize("parts", [(i, o, v) for i in (False, True) for o in (False, True) for v in (False, True)])
def test_what_is_trained_is_chosen_and_gradient_reaches_it_from_the_start(parts: tuple[bool, bool, bool]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3))
    inputs, outputs, vectors = parts
    spectral = spectralize(model, train_inputs=inputs, train_outputs=outputs, train_eigenvectors=vectors)
    images = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spectral(images), model(images))
    penalty = spectral_penalty(spectral, eigenvector_l2=1.0, eigenvalue_l2=1.0)
    spectral(images).square().sum().backward()
    expected = 0.0
    for _, layer in spectral_layers(spectral):
        for name, chosen in zip(PARTS, parts, strict=True):
            part = layer.get_parameter(name)
            assert part.requires_grad == chosen
            assert (part.grad is not None and bool(part.grad.ne(0).all())) == chosen
            expected += float(part.detach().square().sum()) * chosen
    np.testing.assert_allclose(penalty.item(), expected, rtol=1e-6)


def test_a_layer_that_is_used_twice_becomes_one_spectral_layer_and_one_again() -> None:
    linear = nn.Linear(3, 3)
    model = nn.Sequential(linear, nn.Sequential(nn.ReLU(), linear), linear)
    spectral = spectralize(model)
    (_, layer), *others = list(spectral_layers(spectral))
    assert others == []
    assert spectral[0] is spectral[1][1] is spectral[2] is layer
    assert len(list(fold(spectral).parameters())) == 2
    # whichever of its names is kept
    assert list(spectral_layers(spectralize(model, keep=["1"]))) == []


def test_layers_that_could_not_be_folded_back_stay_ordinary() -> None:
    class Own(nn.Linear):
        """A layer of the user's own."""

    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), Own(3, 3), nn.Linear(3, 3))
    assert [name for name, _ in spectral_layers(spectralize(model))] == ["2"]


def test_a_network_can_ask_its_layers_for_their_sizes() -> None:
    class Asking(nn.Module):
        """Flattens by what the next layer takes."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.hidden, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(24, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).view(-1, self.conv.out_channels, 4).view(-1, self.hidden.in_features)
            logits: Tensor = self.fc(torch.relu(self.hidden(y)))
            return logits

    network, images = Asking(), torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    spectral = spectralize(network, keep=["fc"])
    assert torch.equal(spectral(images), network(images))
    smaller = cut(spectral, plan(trace(spectral, (3, 4, 4)), 0.5, floor=0.0))
    assert smaller(images).shape == (2, 2)
    assert smaller.hidden.out_features < 8
