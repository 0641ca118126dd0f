"""What every transfer method promises: one suite, run over the catalogue."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spaces import BadInput, Float, Int, Recipe, Space, Student
from spaces.recipe import RECIPE_NAMES
from trainers import catalogue
from trainers.families import Features, Network, build, capture
from trainers.seeding import seeded
from trainers.transfer import METHODS, Method, Needs, Shapes, Stage, TeacherSignals, method_of
from trainers.transfer.__main__ import generated
from trainers.transfer.feature import FeatureMethod
from trainers.transfer.kd import soft_label_loss
from trainers.transfer.signals import Pass

IMAGE = (1, 8, 8)
RESNET = Student(depth=8, width=0.25)
PAIRS = {
    "alike": (RESNET, RESNET),
    "narrower and shallower than its teacher": (Student(depth=8, width=0.125), Student(depth=20, width=0.5)),
    "wider and deeper than its teacher": (Student(depth=14, width=0.5), Student(depth=8, width=0.125)),
    "of another family, with linear bottlenecks": (
        Student(family="mobilenetv2", width=0.02),
        Student(family="wrn10", width=0.25),
    ),
    "of another family, with shuffled channels": (
        Student(family="shufflenetv2", width=0.02),
        Student(family="vgg8", width=0.1),
    ),
    "of another family, features flat": (Student(family="mlp", depth=3, width=0.05), RESNET),
    "of another family, teacher's features flat": (RESNET, Student(family="mlp", depth=5, width=0.05)),
}
FLAT = {name for name in PAIRS if "flat" in name}
REFUSED = {(method, pair) for method in ("attention", "nst") for pair in FLAT}
"""Methods that compare where in the image something is, on networks whose features are nowhere."""
each_method = pytest.mark.parametrize("method_type", METHODS.values(), ids=METHODS)
each_method_and_pair = pytest.mark.parametrize(
    ("method_type", "student", "teacher"),
    [
        pytest.param(method, *pair, id=f"{name}, {which}")
        for name, method in METHODS.items()
        for which, pair in PAIRS.items()
        if (name, which) not in REFUSED
    ],
)


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

    def built(stage: Stage) -> nn.Module:
        tap = teacher.maps[stage.tap]
        with seeded(generator(4)):
            return stage.build((tap.shape[1], tap.shape[2], tap.shape[3])).eval().requires_grad_(False)

    seen = Pass(teacher, 1, built)
    rows = torch.arange(len(teacher.logits)) * 2 if needs.rows else None
    return needs.gather(len(teacher.maps), lambda signal: signal.compute(seen).detach(), rows=rows)


def made(method_type: type[Method], student: Features, teacher: Features, **options: Any) -> tuple[Method, Needs]:
    parsed = method_type.parse(options)
    method = method_type.make(parsed, shapes(student, teacher), generator=generator(5))
    return method, method_type.needs(parsed)


def shapes(student: Features, teacher: Features) -> Shapes:
    return Shapes(shape(student.maps), shape(teacher.maps), labels=torch.arange(50) % 10)


def whole(method: Method, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
    """What the student learns by, in the stage before its training and in the training."""
    loss: Tensor = method(student, teacher, labels)
    if type(method).pretraining_epochs(type(method).parse({})):
        loss = loss + method.pretraining_loss(student, teacher, labels)
    return loss


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


@each_method_and_pair
def test_gradient_reaches_the_student_and_the_methods_own_parameters_and_nothing_else(
    method_type: type[Method], student: Student, teacher: Student
) -> None:
    ours, theirs = networks(student, teacher)
    images, labels = batch()
    student_features, teacher_features = capture(ours, images), capture(theirs, images)
    method, needs = made(method_type, student_features, teacher_features)
    loss = whole(method, student_features, signals(needs, teacher_features), labels)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    registered = {*ours.parameters(), *method.parameters()}
    assert set(leaves(loss)) <= registered
    assert set(method.parameters()) <= set(leaves(loss))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ours.parameters())
    assert any(bool(p.grad.any()) for p in ours.parameters() if p.grad is not None)
    assert all(p.grad is None for p in theirs.parameters())


@each_method_and_pair
def test_every_learnable_of_the_method_moves_after_one_step(
    method_type: type[Method], student: Student, teacher: Student
) -> None:
    ours, theirs = networks(student, teacher)
    images, labels = batch()
    student_features, teacher_features = capture(ours, images), capture(theirs, images)
    method, needs = made(method_type, student_features, teacher_features)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.SGD([*ours.parameters(), *method.parameters()], lr=1.0)
    whole(method, student_features, signals(needs, teacher_features), labels).backward()
    optimizer.step()
    assert [name for name, p in method.named_parameters() if torch.equal(p, before[name])] == []


@each_method
def test_what_the_teacher_says_reaches_the_students_gradient(method_type: type[Method]) -> None:
    images, labels = batch()
    ours, theirs = networks(*PAIRS["alike"])
    student_features = capture(ours, images)
    one = capture(theirs, images)
    other = Features(
        -one.logits, *(tuple(-10 * m.roll(1, dims=0) for m in maps) for maps in (one.maps, one.before_relu))
    )
    method, needs = made(method_type, student_features, one)
    gradients = []
    for teacher_features in (one, other):
        loss = whole(method, student_features, signals(needs, teacher_features), labels)
        gradients.append(torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True))
    same = all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert same == (needs == Needs())


LABELS_SHARE = {"kd": 0.1, "ensemble": 0.1}
"""Of methods whose labels count less than 1, by default."""


@each_method
def test_class_weights_are_those_of_the_labels_and_of_nothing_else(method_type: type[Method]) -> None:
    images, labels = batch()
    ours, theirs = networks(*PAIRS["alike"])
    student, teacher = capture(ours, images), capture(theirs, images)
    options = method_type.parse({})
    given, weights = signals(method_type.needs(options), teacher), torch.linspace(0.1, 3.0, 10)
    losses = []
    for each in (None, weights):
        built = replace(shapes(student, teacher), class_weights=each)
        method = method_type.make(options, built, generator=generator(5))
        assert "class_weights" not in method.state_dict()
        losses.append(method(student, given, labels).detach())
    ce = nn.functional.cross_entropy(student.logits.detach(), labels, reduction="none")
    expected = LABELS_SHARE.get(method_type.name, 1.0) * ((weights[labels] - 1.0) * ce).mean()
    assert abs(float(expected)) > 0.01
    torch.testing.assert_close(losses[1] - losses[0], expected, rtol=1e-4, atol=1e-4 * float(losses[0].abs()))


SIZES = {"unlike": ((5, 3), (2, 6)), "one pixel": ((1, 1), (4, 4)), "larger": ((8, 8), (3, 2))}


def features(channels: int, size: tuple[int, int], seed: int, count: int = 6) -> Features:
    """Of two taps, with gradient, the maps being ReLUs."""
    before = tuple(torch.randn(count, c, *size, generator=generator(seed + c)) for c in (channels, channels + 1))
    before = tuple(m.requires_grad_() for m in before)
    logits = torch.randn(count, 10, generator=generator(seed)).requires_grad_()
    return Features(logits, tuple(m.relu() for m in before), before)


@each_method
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_maps_of_unlike_resolutions_are_taken(
    method_type: type[Method], sizes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    student, teacher = features(3, sizes[0], 10), features(5, sizes[1], 20)
    if method_type.name in ("attention", "nst") and sizes == SIZES["one pixel"]:
        with pytest.raises(BadInput, match="must have maps of more than one pixel"):
            made(method_type, student, teacher)
        return
    method, needs = made(method_type, student, teacher)
    loss = whole(method, student, signals(needs, teacher), batch()[1])
    loss.backward()
    assert torch.isfinite(loss)
    assert student.logits.grad is not None
    assert all(m.grad is None for m in teacher.before_relu)


@pytest.mark.parametrize(("name", "pair"), sorted(REFUSED))
def test_a_pair_that_a_method_cannot_work_with_is_refused_when_it_is_made(name: str, pair: str) -> None:
    ours, theirs = (capture(network, batch()[0]) for network in networks(*PAIRS[pair]))
    with pytest.raises(BadInput, match=f"`{name}` must have maps of more than one pixel on both sides"):
        made(METHODS[name], ours, theirs)


@pytest.mark.parametrize("name", ["fsp", "kdsvd"])
def test_methods_on_neighbouring_layers_refuse_a_network_with_one(name: str) -> None:
    pair = networks(RESNET, Student(family="mlp", depth=2, width=0.05))
    ours, theirs = (capture(network, batch()[0]) for network in pair)
    with pytest.raises(BadInput, match=f"`{name}` must have two features or more on both sides"):
        made(METHODS[name], ours, theirs)


@each_method
def test_a_student_of_one_hidden_layer_will_do(method_type: type[Method]) -> None:
    pair = networks(Student(family="mlp", depth=2, width=0.05), RESNET)
    ours, theirs = (capture(network, batch()[0]) for network in pair)
    if method_type.name in ("attention", "nst", "fsp", "kdsvd"):
        with pytest.raises(BadInput, match=f"`{method_type.name}` must have"):
            made(method_type, ours, theirs)
        return
    method, needs = made(method_type, ours, theirs)
    assert torch.isfinite(whole(method, ours, signals(needs, theirs), batch()[1]))


@each_method
def test_a_batch_may_be_as_small_as_the_method_says_and_no_smaller(method_type: type[Method]) -> None:
    least = method_type.minimum_batch
    for count in (1, 2):
        student, teacher = features(3, (4, 4), 10, count), features(5, (4, 4), 20, count)
        method, needs = made(method_type, student, teacher)
        if count < least:
            with pytest.raises(ValueError, match=f"{method_type.name} needs batches of at least {least}, but got 1"):
                whole(method, student, signals(needs, teacher), batch(count)[1])
            continue
        loss = whole(method, student, signals(needs, teacher), batch(count)[1])
        loss.backward()
        assert torch.isfinite(loss)
        assert all(bool(p.grad.isfinite().all()) for p in (*student.before_relu, student.logits) if p.grad is not None)


@each_method
def test_features_that_are_all_zero_give_a_finite_loss_and_gradient(method_type: type[Method]) -> None:
    """As dead ReLUs make them."""
    teacher, logits = features(5, (4, 4), 20), torch.zeros(6, 10, requires_grad=True)
    before = tuple(torch.zeros(6, c, 4, 4, requires_grad=True) for c in (3, 4))
    for ours, theirs in ((Features(logits, before, before), teacher), (teacher, Features(logits, before, before))):
        method, needs = made(method_type, ours, theirs)
        loss = whole(method, ours, signals(needs, theirs), batch()[1])
        loss.backward()
        assert torch.isfinite(loss)
        learned = [*method.parameters(), *ours.before_relu, ours.logits]
        assert all(bool(p.grad.isfinite().all()) for p in learned if p.grad is not None)


@each_method
def test_the_loss_is_finite_in_bfloat16(method_type: type[Method]) -> None:
    def halved(actual: Any) -> dict[str, Any]:
        return {
            name: tuple(m.bfloat16() for m in value)
            if isinstance(value, tuple)
            else (value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value)
            for name, value in vars(actual).items()
        }

    student, teacher = features(3, (5, 3), 10), features(5, (4, 4), 20)
    method, needs = made(method_type, student, teacher)
    exact = whole(method, student, signals(needs, teacher), batch()[1])
    method, _ = made(method_type, student, teacher)
    said = TeacherSignals(**halved(signals(needs, teacher)))
    loss = whole(method.bfloat16(), Features(**halved(student)), said, batch()[1])
    loss.backward()
    assert all(bool(m.grad.isfinite().all()) for m in (*student.before_relu, student.logits) if m.grad is not None)
    # eight bits of mantissa, and sums of many terms of both signs
    assert loss.item() == pytest.approx(exact.item(), rel=0.15)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if issubclass(method, FeatureMethod)])
def test_soft_labels_are_added_to_any_method_on_features(name: str) -> None:
    student, teacher = features(3, (4, 4), 10), features(5, (4, 4), 20)
    (plain, needs), (soft, more) = (
        made(METHODS[name], student, teacher, soft_labels=weight, temperature=3.0) for weight in (0.0, 0.7)
    )
    assert (needs.logits, more.logits) == (False, True)
    one, other = plain(student, signals(needs, teacher), batch()[1]), soft(student, signals(more, teacher), batch()[1])
    added = 0.7 * soft_label_loss(student.logits, teacher.logits, 3.0)
    torch.testing.assert_close(other - one, added, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not issubclass(method, FeatureMethod)])
def test_a_method_without_a_stage_of_its_own_has_no_loss_for_one(name: str) -> None:
    student, teacher = features(3, (4, 4), 10), features(5, (4, 4), 20)
    method, needs = made(METHODS[name], student, teacher)
    with pytest.raises(NotImplementedError, match=f"`{type(method).__name__}` has pretraining epochs, and so must"):
        method.pretraining_loss(student, signals(needs, teacher), batch()[1])


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
    actual, options = method_of(Recipe(transfer=method_type.name))
    assert (actual, options) == (method_type, method_type.Options())
    assert method_type.__doc__
    assert method_type.paper.title
    # a method called like a part of a recipe would have its options taken for the part's
    assert not any(name.startswith(f"{method_type.name}.") for name in RECIPE_NAMES)


def test_the_catalogue_is_what_the_methods_say() -> None:
    assert catalogue.FILE.read_text(encoding="utf-8") == generated(), "run `python -m trainers.transfer`"


@each_method
def test_the_catalogue_takes_and_refuses_what_the_method_does_in_the_same_words(method_type: type[Method]) -> None:
    def said(check: Callable[[dict[str, Any]], object], options: dict[str, Any]) -> str:
        try:
            check(options)
        except BadInput as error:
            return str(error)
        return ""

    values = (-1, -1.0, 0, 0.0, 0.5, 1, 1.0, 1.5, 2, 3, 1e9, math.nan, math.inf, True, "none", "half", [1.0])
    tried = [{option: value} for option in (*method_type.Options.model_fields, "temprature") for value in values]
    for options in [{}, *tried]:
        by_catalogue = said(lambda given: catalogue.check_options(method_type.name, given), options)
        assert by_catalogue == said(method_type.parse, options)


def test_the_documentation_has_every_method_and_its_defaults() -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", text, re.MULTILINE))
    assert list(rows) == list(METHODS)
    for name, method_type in METHODS.items():
        shared = (
            FeatureMethod.Options.model_fields.keys() - {"weight"} if issubclass(method_type, FeatureMethod) else ()
        )
        written = {key: float(value) for key, value in re.findall(r"`(\w+)` ([\d.]+)", rows[name])}
        texts = dict(re.findall(r"`(\w+)` is `(\w+)`", rows[name]))
        defaults = {key: f.default for key, f in method_type.Options.model_fields.items() if key not in shared}
        assert texts == {key: value for key, value in defaults.items() if isinstance(value, str)}
        assert written == pytest.approx({key: defaults[key] for key in defaults if key not in texts}, rel=5e-3)
        assert method_type.paper.link in rows[name]


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
