"""A spectral student that is far too wide has a core of its teacher's size (Giambagli et al. 2023), quickly.

The paper's task and penalties with a teacher of 10 units, a fifteenth of its steps at four times its rate; at its own
settings, with more seeds and widths, it is benchmarks/spectral_teacher_student.py that measures it.
"""

import torch
from torch import Tensor, nn

from trainers.computing import computing
from trainers.seeding import seeded
from trainers.spectral import SpectralLinear, importances, spectral_penalty, trace

TEACHER, WIDTH = 10, 40


def network(units: int, generator: torch.Generator) -> nn.Sequential:
    """10 -> units -> 20, ReLU after each; the sum of what comes out is the function."""
    with seeded(generator):
        model = nn.Sequential(nn.Linear(10, units, bias=False), nn.ReLU(), nn.Linear(units, 20, bias=False), nn.ReLU())
        for layer in (model[0], model[2]):
            nn.init.xavier_uniform_(layer.weight)
    return model


def errors(eigenvector_l2: float, eigenvalue_l2: float) -> list[float]:
    """Mean squared error on fresh data of a trained student with its n most relevant units alone, n = 0 .. WIDTH."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = network(TEACHER, generator).requires_grad_(False), network(WIDTH, generator)
    first = student[0]
    assert isinstance(first, nn.Linear)
    student[0] = spectral = SpectralLinear(first)
    x = torch.randn(10_000, 10, generator=generator)
    y = teacher(x).sum(1)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=0.02, eps=1e-7)

    def error(index: Tensor) -> Tensor:
        return (student(x[index]).sum(1) - y[index]).square().mean()

    for _ in range(150):
        for index in torch.randperm(8000, generator=generator).split(300):
            optimizer.zero_grad()
            penalty = spectral_penalty(student, eigenvector_l2=eigenvector_l2, eigenvalue_l2=eigenvalue_l2)
            (error(index) + penalty).backward()
            optimizer.step()
    fresh = torch.arange(8000, 10_000)
    (importance,) = importances(trace(student, (10,))).values()
    results = []
    with torch.no_grad():
        for unit in importance.argsort():
            results.append(float(error(fresh)))
            spectral.eigenvalues_out[unit] = 0.0
        results.append(float(error(fresh)))
    return results[::-1]


def test_a_penalised_student_of_four_times_the_teachers_width_needs_as_many_units_as_the_teacher_and_no_fewer() -> None:
    with computing(1):
        actual = errors(0.01, 5e-4)
    assert actual[TEACHER + 4] <= 2 * actual[WIDTH]
    assert actual[TEACHER - 1] >= 2 * actual[WIDTH]


def test_without_the_penalty_there_is_no_such_core() -> None:
    with computing(1):
        actual = errors(0.0, 0.0)
    assert actual[TEACHER + 4] >= 2 * actual[WIDTH]
