"""The space: which recipes may be drawn."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from spaces.errors import BadInput, known, number_hint, shown, shown_all
from spaces.recipe import RECIPE_NAMES, Recipe, Scalar, in_one_level


class Suggest(Protocol):
    """Chooses values; an `optuna.Trial` is one."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""


@dataclass(frozen=True)
class Choice:
    """One of the listed values; a single value is fixed and never suggested."""

    values: tuple[Scalar, ...]

    def draw(self, name: str, suggest: Suggest) -> Scalar:
        """The value that `suggest` chooses."""
        if len(self.values) == 1:
            return self.values[0]
        value: Scalar = suggest.suggest_categorical(name, self.values)
        return value

    def holds(self, value: object) -> bool:
        """Whether `value` may be drawn."""
        return any(type(value) is type(own) and value == own for own in self.values)

    def extremes(self) -> tuple[Scalar, ...]:
        """The values whose validity implies the validity of all others."""
        return self.values


@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`, both included; `log` spreads draws evenly over orders of magnitude."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def draw(self, name: str, suggest: Suggest) -> Scalar:
        """The value that `suggest` chooses."""
        return suggest.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def holds(self, value: object) -> bool:
        """Whether `value` may be drawn; integers are accepted."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) <= 1e-8

    def extremes(self) -> tuple[Scalar, ...]:
        """The values whose validity implies the validity of all others."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def draw(self, name: str, suggest: Suggest) -> Scalar:
        """The value that `suggest` chooses."""
        return suggest.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def holds(self, value: object) -> bool:
        """Whether `value` may be drawn."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and value in range(self.low, self.high + 1, self.step)

    def extremes(self) -> tuple[Scalar, ...]:
        """Every value: the valid integers (such as depths of residual networks) need not be an interval.

        If there are more than 1,000 values, as for a seed, only the two ends.
        """
        values = range(self.low, self.high + 1, self.step)
        return tuple(values) if len(values) <= MOST_CHOICES else (values[0], values[-1])


Domain = Choice | Float | Int

MOST_CHOICES = 1_000
MOST_STEPS = 100_000
"""Values of an interval of numbers with a step."""
LARGEST = 1e15
"""Magnitude of a number in a space; above it a float cannot represent every integer."""
MOST_FRACTIONS = 100
"""Number of fractions at which a trained student may be measured."""

TOGETHER = {
    ("spectral.train_inputs", "spectral.train_outputs", "spectral.train_eigenvectors"): "fix one of them to true",
    ("student.start", "student.width"): "lower it, or search the two starts in two studies",
}
"""Parameters with a rule that is about all of them, and what to do where it is broken."""

FIRST = ("transfer", "student.start")
"""Parameters that decide which others matter; they are drawn first."""

_OF_A_FAMILY = ("family", "depth", "members", "fast_weights", "fast_weight_spread")
"""Of a student that starts from scratch alone."""

_DEFAULTS = Recipe().flat()


@dataclass(frozen=True)
class Space:
    """The namespaced parameters of a study, each with the values it may take.

    A method's parameter (`kd.temperature`) is drawn only when that method is drawn. Parameters that are not named take
    their defaults.
    """

    parameters: Mapping[str, Domain]

    def __post_init__(self) -> None:
        """Raise BadInput for a name that no recipe has, or a value that no recipe takes."""
        for name, domain in self.parameters.items():
            namespace, _, field = name.rpartition(".")
            if name not in RECIPE_NAMES:
                if namespace not in self.methods or not field:
                    drawn = [f"{method}.*" for method in self.methods]
                    methods = shown_all(self.methods)
                    raise BadInput(
                        f"`space.{name}` is not a parameter of this space (methods drawn: {methods}); "
                        f"{known([*RECIPE_NAMES, *drawn], name)}"
                    )
                continue
            for value in domain.extremes():
                try:
                    Recipe.from_flat({name: value})
                except BadInput as error:
                    raise BadInput(f"space: {error}") from None
        for names, way_out in TOGETHER.items():
            try:
                for _ in self.extremes(*names):
                    pass
            except BadInput as error:
                raise BadInput(f"space: {error}; {way_out}") from None

    @classmethod
    def from_mapping(cls, raw: Mapping[Any, Any]) -> Self:
        """The space as a study file writes it: a value (fixed), a list (choices), or `{low, high, step, log}`.

        Integer limits draw integers if the recipe's field is an integer (`student.depth`). A space cannot know the type
        of a method's own parameter: there an integer `step` asks for integers, and without one
        `kd.temperature: {low: 1, high: 8}` may also draw 2.7.

        Raises:
            BadInput: the message names the parameter, the rule it breaks and the value.
        """
        for name in raw:
            if not isinstance(name, str):
                raise BadInput(
                    f"names in `space` must be strings, but got {shown(name)}; write it like `student.width`"
                )
        flat = in_one_level(raw, "space")
        return cls({name: _domain(f"space.{name}", value) for name, value in flat.items()})

    @property
    def methods(self) -> tuple[str, ...]:
        """The transfer methods that may be drawn."""
        domain = self.parameters.get("transfer", Choice((Recipe().transfer,)))
        return tuple(str(value) for value in domain.extremes())

    def extremes_of(self, name: str) -> tuple[Any, ...]:
        """The values of a parameter whose validity implies that of all others; its default if it is not named."""
        return self.parameters.get(name, Choice((_DEFAULTS[name],))).extremes()

    def draw(self, suggest: Suggest) -> Recipe:
        """One recipe; `suggest` is asked only for parameters that matter to it, the transfer method first."""
        flat = {name: self.parameters[name].draw(name, suggest) for name in FIRST if name in self.parameters}
        for name, domain in self.parameters.items():
            if name not in FIRST and _matters(name, flat):
                flat[name] = domain.draw(name, suggest)
        return Recipe.from_flat(flat)

    def fractions(self) -> tuple[float, ...]:
        """Pruning fractions at which a trained student may be measured: nine of an interval, all of a list.

        Each of the nine leaves the same share of the units that the previous one leaves, so that sizes are evenly
        spaced on a logarithmic axis. Empty if the space has a single fraction.
        """
        domain = self.parameters.get("pruning.fraction", Choice((0.0,)))
        if isinstance(domain, Float) and domain.step is None:
            ratio = (1 - domain.high) / (1 - domain.low)
            inner = {round(1 - (1 - domain.low) * ratio ** (step / 8), 9) for step in range(1, 8)}
            fractions = {domain.low, *(min(max(fraction, domain.low), domain.high) for fraction in inner), domain.high}
        elif isinstance(domain, Float) and domain.step is not None:
            steps = round((domain.high - domain.low) / domain.step)
            fractions = {round(domain.low + domain.step * step, 9) for step in range(steps + 1)}
        else:
            fractions = {float(value) for value in domain.extremes()}
        return tuple(sorted(fractions)) if len(fractions) > 1 else ()

    def extremes(self, *names: str) -> Iterator[Recipe]:
        """Recipes at every combination of the named parameters' extreme values, all else at its default."""
        present = [name for name in names if name in self.parameters]
        for values in itertools.product(*(self.parameters[name].extremes() for name in present)):
            yield Recipe.from_flat(dict(zip(present, values, strict=True)))

    def partial(self, given: Mapping[str, Any]) -> dict[str, Scalar]:
        """The parameters fixed by `given`, the beginning of a recipe; those with a single value are never suggested.

        Raises:
            BadInput: a name or value that is not in the space, or an option of a method other than the given one.
        """
        method = given.get("transfer", self.methods[0] if len(self.methods) == 1 else None)
        decided: dict[str, Scalar] = {}
        for name, value in given.items():
            if name not in self.parameters:
                raise BadInput(f"`{name}` must be a parameter of the space; {known(self.parameters, name)}")
            domain, namespace = self.parameters[name], name.rpartition(".")[0]
            if not domain.holds(value):
                raise BadInput(f"`{name}` must be in the space, but got {shown(value)}; it has {_written(domain)}")
            if name not in RECIPE_NAMES and namespace != method:
                raise BadInput(
                    f"`{name}` must appear with `transfer: {namespace}`, but appears with {method or 'none'}"
                )
            if _is_asked(domain):
                decided[name] = float(value) if isinstance(domain, Float) else value
        return decided

    @property
    def size(self) -> int:
        """How many recipes there are.

        Raises:
            BadInput: infinitely many, since an interval has no step.
        """
        return sum(math.prod(len(values) for _, values in block) for block in self._grid())

    def combination(self, index: int) -> dict[str, Scalar]:
        """What is drawn for the recipe with this number, from 0, without the parameters that have a single value."""
        for block in self._grid():
            count = math.prod(len(values) for _, values in block)
            if index < count:
                drawn: dict[str, Scalar] = {}
                for name, values in reversed(block):
                    index, place = divmod(index, len(values))
                    if _is_asked(self.parameters[name]):
                        drawn[name] = values[place]
                return drawn
            index -= count
        raise IndexError(index)

    def _grid(self) -> Iterator[list[tuple[str, Sequence[Scalar]]]]:
        """For each method and start the parameters that matter to them, with all their values."""
        values = {name: _values(name, domain) for name, domain in self.parameters.items()}
        first = [name for name in FIRST if name in values]
        for decided in itertools.product(*(values[name] for name in first)):
            given = dict(zip(first, decided, strict=True))
            block = [(name, own) for name, own in values.items() if name not in FIRST and _matters(name, given)]
            yield [*((name, (value,)) for name, value in given.items()), *block]

    def to_mapping(self) -> dict[str, Any]:
        """What `from_mapping` reads back as an equal space."""
        return {name: _written(domain) for name, domain in self.parameters.items()}


def _matters(name: str, decided: Mapping[str, Scalar]) -> bool:
    """Whether a parameter says something of a recipe in which those of FIRST have been decided."""
    if name not in RECIPE_NAMES:
        return name.rpartition(".")[0] == decided.get("transfer", Recipe().transfer)
    part, _, field = name.rpartition(".")
    return not (decided.get("student.start") == "teacher" and part == "student" and field in _OF_A_FAMILY)


def _is_asked(domain: Domain) -> bool:
    """Whether drawing a recipe asks for the parameter."""
    return not isinstance(domain, Choice) or len(domain.values) > 1


def _values(name: str, domain: Domain) -> Sequence[Scalar]:
    if isinstance(domain, Choice):
        return domain.values
    if isinstance(domain, Int):
        return range(domain.low, domain.high + 1, domain.step)
    if domain.low == domain.high:
        return (domain.low,)
    if domain.step is None:
        raise BadInput(
            f"`space.{name}` must be a list or have a step to be searched by grid, but is {_written(domain)}; "
            "add a step, or take another sampler"
        )
    steps = round((domain.high - domain.low) / domain.step)
    return tuple(domain.low + place * domain.step for place in range(steps + 1))


def _written(domain: Domain) -> list[Scalar] | dict[str, Scalar]:
    if isinstance(domain, Choice):
        return list(domain.values)
    written: dict[str, Scalar] = {"low": domain.low, "high": domain.high}
    if domain.log:  # which excludes a step
        return {**written, "log": True}
    return written if domain.step is None else {**written, "step": domain.step}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _domain(name: str, raw: object) -> Domain:
    if isinstance(raw, Mapping):
        return _interval(name, raw)
    values: Sequence[Any] = raw if isinstance(raw, list | tuple) else [raw]
    if len(values) > MOST_CHOICES:
        raise BadInput(f"`{name}` must have at most {MOST_CHOICES:,} choices, but has {len(values):,}; list fewer")
    if not values:
        raise BadInput(f"`{name}` must have at least one choice, but got []; list its values or remove it")
    for value in values:
        if not (isinstance(value, bool | str) or _is_number(value)):
            raise BadInput(
                f"choices of `{name}` must be finite numbers (at most {LARGEST:g}), strings or true/false, "
                f"but got {shown(value)}"
            )
    if len({(type(value), value) for value in values}) < len(values):
        raise BadInput(f"choices of `{name}` must differ, but got {shown(list(values))}; write each once")
    return Choice(tuple(values))


def _interval(name: str, raw: Mapping[Any, Any]) -> Domain:
    keys = ("low", "high", "step", "log")
    for key in raw:
        if key not in keys:
            raise BadInput(f"`{name}.{shown(key).strip(chr(39))}` is not a known key; {known(keys, key)}")
    for key in ("low", "high"):
        if key not in raw:
            raise BadInput(f"`{name}` must have both low and high, but got {shown(dict(raw))}; add {key}")
    low, high, step, log = raw["low"], raw["high"], raw.get("step"), raw.get("log", False)
    for key, value in (("low", low), ("high", high), *((("step", step),) if step is not None else ())):
        if not _is_number(value):
            large = isinstance(value, int | float) and abs(value) > LARGEST
            limit = f", at most {LARGEST:g}" if large else ""
            raise BadInput(f"`{name}.{key}` must be a finite number{limit}, but got {shown(value)}{number_hint(value)}")
    if not isinstance(log, bool):
        raise BadInput(f"`{name}.log` must be true or false, but got {shown(log)}")
    if low > high:
        raise BadInput(f"`{name}` must have low <= high, but got low {low}, high {high}; swap them")
    if log and low <= 0:
        raise BadInput(f"`{name}` must have low > 0 with log: true, but got {low}; raise low or drop log")
    if log and step is not None:
        raise BadInput(f"`{name}` takes log or step, not both, but got step {step} with log: true; drop one")
    if step is not None:
        if step <= 0:
            raise BadInput(f"`{name}.step` must be above 0, but got {step}; drop it for a continuous range")
        steps = (high - low) / step
        if steps > MOST_STEPS and not all(isinstance(value, int) for value in (low, high, step)):
            raise BadInput(
                f"`{name}` must have at most {MOST_STEPS:,} steps, but {shown(step)} makes {steps:.3g}; "
                "widen the step, or drop it for a continuous range"
            )
        if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
            reach = low + math.floor(steps) * step
            raise BadInput(
                f"`{name}.high` must be low plus whole steps, but got {high}; the last step ends at {reach:g}"
            )
    field = name.removeprefix("space.")
    wanted_whole = isinstance(_DEFAULTS[field], int) if field in _DEFAULTS else step is not None
    if wanted_whole and isinstance(low, int) and isinstance(high, int) and isinstance(step, int | None):
        return Int(low, high, step or 1, log)
    return Float(float(low), float(high), None if step is None else float(step), log)
