"""What every transfer method promises: one suite, run over the catalogue."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spaces import BadInput, Float, Int, Recipe, Space, Student
from spaces.recipe import RECIPE_NAMES
from trainers.families import Features, Network, build, capture
from trainers.seeding import seeded
from trainers.transfer import METHODS, Method, Needs, Shapes, TeacherSignals, method_of

IMAGE = (1, 8, 8)
RESNET = Student(depth=8, width=0.25)
PAIRS = {
    "alike": (RESNET, RESNET),
    "narrower and shallower than its teacher": (Student(depth=8, width=0.125), Student(depth=20, width=0.5)),
    "wider and deeper than its teacher": (Student(depth=14, width=0.5), Student(depth=8, width=0.125)),
    "of another family, features flat": (Student(family="mlp", depth=3, width=0.05), RESNET),
    "of another family, teacher's features flat": (RESNET, Student(family="mlp", depth=5, width=0.05)),
}
each_method = pytest.mark.parametrize("method_type", METHODS.values(), ids=METHODS)
each_pair = pytest.mark.parametrize(("student", "teacher"), PAIRS.values(), ids=PAIRS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def networks(student: Student, teacher: Student) -> tuple[Network, Network]:
    return build(student, IMAGE, 10, generator=generator(1)).train(), build(teacher, IMAGE, 10, generator=generator(2))


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    """images (B, 1, 8, 8) and labels (B,)."""
    return torch.rand(count, *IMAGE, generator=generator(3)), torch.arange(count) % 10


def shape(maps: tuple[Tensor, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple((m.shape[1], m.shape[2], m.shape[3]) for m in maps)


def signals(needs: Needs, teacher: Features) -> TeacherSignals:
    """What knowledge hands over, from a stage that is built but not trained."""
    staged = None
    if needs.stage is not None:
        tap = teacher.maps[needs.stage.tap].detach()
        with seeded(generator(4)):
            module = needs.stage.build((tap.shape[1], tap.shape[2], tap.shape[3])).eval().requires_grad_(False)
        staged = needs.stage.apply(module, tap)
    return TeacherSignals(
        logits=teacher.logits.detach() if needs.logits else None,
        maps=tuple(teacher.maps[tap].detach() for tap in needs.maps),
        staged=staged,
    )


def made(method_type: type[Method], student: Features, teacher: Features, **options: Any) -> tuple[Method, Needs]:
    parsed = method_type.parse(options)
    method = method_type.make(parsed, Shapes(shape(student.maps), shape(teacher.maps)), generator=generator(5))
    return method, method_type.needs(parsed)


def leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors that the graph of `loss` ends in and that take gradient."""
    seen, to_visit = set(), [loss.grad_fn]
    while to_visit:
        node = to_visit.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        to_visit += [following for following, _ in node.next_functions]


@each_method
@each_pair
def test_gradient_reaches_the_student_and_the_methods_own_parameters_and_nothing_else(
    method_type: type[Method], student: Student, teacher: Student
) -> None:
    ours, theirs = networks(student, teacher)
    images, labels = batch()
    student_features, teacher_features = capture(ours, images), capture(theirs, images)
    method, needs = made(method_type, student_features, teacher_features)
    loss = method(student_features, signals(needs, teacher_features), labels)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    registered = {*ours.parameters(), *method.parameters()}
    assert set(leaves(loss)) <= registered
    assert set(method.parameters()) <= set(leaves(loss))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ours.parameters())
    assert any(bool(p.grad.any()) for p in ours.parameters() if p.grad is not None)
    assert all(p.grad is None for p in theirs.parameters())


@each_method
@each_pair
def test_every_learnable_of_the_method_moves_after_one_step(
    method_type: type[Method], student: Student, teacher: Student
) -> None:
    ours, theirs = networks(student, teacher)
    images, labels = batch()
    student_features, teacher_features = capture(ours, images), capture(theirs, images)
    method, needs = made(method_type, student_features, teacher_features)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.SGD([*ours.parameters(), *method.parameters()], lr=1.0)
    method(student_features, signals(needs, teacher_features), labels).backward()
    optimizer.step()
    assert [name for name, p in method.named_parameters() if torch.equal(p, before[name])] == []


@each_method
def test_what_the_teacher_says_reaches_the_students_gradient(method_type: type[Method]) -> None:
    images, labels = batch()
    ours, theirs = networks(*PAIRS["alike"])
    student_features = capture(ours, images)
    one = capture(theirs, images)
    other = Features(-one.logits, tuple(-10 * m for m in one.maps))
    method, needs = made(method_type, student_features, one)
    gradients = []
    for teacher_features in (one, other):
        loss = method(student_features, signals(needs, teacher_features), labels)
        gradients.append(torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True))
    same = all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert same == (needs == Needs())


@each_method
@pytest.mark.parametrize(("ours", "theirs"), [((5, 3), (2, 6)), ((1, 1), (4, 4)), ((8, 8), (3, 2))])
def test_maps_of_unlike_resolutions_are_taken(
    method_type: type[Method], ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    def features(channels: int, size: tuple[int, int], seed: int) -> Features:
        maps = tuple(torch.rand(6, c, *size, generator=generator(seed + c)) for c in (channels, channels + 1))
        return Features(torch.randn(6, 10, generator=generator(seed)), tuple(m.requires_grad_() for m in maps))

    student, teacher = features(3, ours, 10), features(5, theirs, 20)
    method, needs = made(method_type, student, teacher)
    student.logits.requires_grad_()
    loss = method(student, signals(needs, teacher), batch()[1])
    loss.backward()
    assert torch.isfinite(loss)
    assert student.logits.grad is not None
    assert all(m.grad is None for m in teacher.maps)


@each_method
def test_adapters_begin_as_the_generator_says_and_the_global_one_is_left_alone(method_type: type[Method]) -> None:
    features = [capture(network, batch()[0]) for network in networks(*PAIRS["alike"])]
    torch.manual_seed(8)
    state = torch.random.get_rng_state()
    one, _ = made(method_type, features[0], features[1])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(9)
    again, _ = made(method_type, features[0], features[1])
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), again.parameters(), strict=True))


@each_method
def test_the_ranges_that_a_method_proposes_are_ones_it_takes(method_type: type[Method]) -> None:
    for option, field in method_type.Options.model_fields.items():
        if not isinstance(field.json_schema_extra, dict):
            continue
        name = f"{method_type.name}.{option}"
        space = Space.from_mapping({"transfer": method_type.name, name: field.json_schema_extra["search"]})
        domain = space.parameters[name]
        assert not isinstance(domain, Int) or field.annotation is int
        assert not isinstance(domain, Float) or field.annotation is float
        for value in domain.extremes():
            method_type.parse({option: value})


@each_method
def test_a_method_is_found_under_its_name_with_its_defaults(method_type: type[Method]) -> None:
    found, options = method_of(Recipe(transfer=method_type.name))
    assert (found, options) == (method_type, method_type.Options())
    assert method_type.__doc__
    assert method_type.paper.title
    # a method called like a part of a recipe would have its options taken for the part's
    assert not any(name.startswith(f"{method_type.name}.") for name in RECIPE_NAMES)


@each_method
def test_an_unknown_option_is_refused(method_type: type[Method]) -> None:
    recipe = Recipe(transfer=method_type.name, options=(("temprature", 1.0),))
    with pytest.raises(BadInput, match=rf"`{method_type.name}\.temprature` is not a known key"):
        method_of(recipe)


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("kd", "temperature", 0.0, r"`kd\.temperature` should be greater than 0, but got 0\.0; leave it out for 4\.0"),
        ("kd", "weight", 1.1, r"`kd\.weight` should be less than or equal to 1"),
        ("factor", "rate", "half", r"`factor\.rate` should be a valid number, but got 'half'"),
        ("factor", "p", 3, r"`factor\.p` should be 1 or 2, but got 3"),
        ("factor", "paraphraser_steps", 10.0, r"`factor\.paraphraser_steps` should be a valid integer.*whole `step`"),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, option: str, value: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        METHODS[name].parse({option: value})


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(BadInput, match=r"`transfer` must be a known method, but got 'facter'; did you mean `factor`\?"):
        method_of(Recipe(transfer="facter"))


def test_a_leaf_that_nobody_registered_would_be_seen() -> None:
    hidden, layer = torch.zeros(3, requires_grad=True), nn.Linear(3, 3)
    assert hidden in set(leaves(layer(hidden * 2).sum()))
