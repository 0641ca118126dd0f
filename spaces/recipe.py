"""The recipe: every choice that defines one student, as a value."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from spaces.errors import BadInput, known, one_line, shown

Scalar = bool | int | float | str


class Part(BaseModel):
    """A frozen, strictly typed group of choices: an unknown key, a wrong type, NaN or infinity is refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Student(Part):
    """The network a trial trains."""

    start: Literal["scratch", "teacher"] = "scratch"
    """`teacher`: the student is the task's teacher with its weights, cut to `width` before it is trained; family, depth
    and members then say nothing."""
    family: str = "resnet"
    """A name in `trainers.families.FAMILIES`."""
    depth: int = Field(default=8, ge=2, le=10_000)
    """Layers with weights, as the family counts them (residual networks: 6n+2)."""
    width: float = Field(default=1.0, gt=0.0, le=64.0)
    """Multiplies the family's base channel counts; each is rounded to a whole channel, at least 1. Of a student that
    starts as the teacher: the share of each group of coupled units that stays, at most 1."""
    members: int = Field(default=1, ge=1, le=64)
    """Above 1 the network is a BatchEnsemble: so many members share its weights; their probabilities are averaged."""
    fast_weights: Literal["normal", "signs"] = "normal"
    """Initial fast weights of a BatchEnsemble: normal around 1, or +1 and -1 at random."""
    fast_weight_spread: float = Field(default=0.5, ge=0.0)
    """Standard deviation of the normal ones."""

    @model_validator(mode="after")
    def _of_the_teacher(self) -> Self:
        if self.start == "teacher" and self.width > 1.0:
            raise ValueError("must have a width of at most 1 with `start: teacher`")
        return self


class Training(Part):
    """Stochastic gradient descent with Nesterov momentum; the rate warms up linearly, then falls as a cosine.

    A student that starts as the teacher has other defaults: 10 epochs, a learning rate of 0.02, and gradients of a norm
    of 3 at most.
    """

    epochs: int = Field(default=30, ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=2, le=1_000_000)
    learning_rate: float = Field(default=0.1, gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=5e-4, ge=0.0)
    """For every weight that is not spectral (those have the `spectral` penalties); not for biases and batch norms."""
    max_gradient_norm: float = Field(default=0.0, ge=0.0)
    """What the L2 norm of the whole gradient is cut down to in each step; 0 is no limit. In fine-tuning, too."""
    fast_learning_rate: float = Field(default=1.0, ge=0.0)
    """For a BatchEnsemble's fast weights, as a multiple of `learning_rate`; fine-tuning uses the same multiple."""
    fast_weight_decay: float = Field(default=0.0, ge=0.0)
    """For a BatchEnsemble's fast weights."""


class Spectral(Part):
    """Which parts of the spectral layers are trained, and their L2 penalty, added to the loss as coefficient times sum
    of squares.

    The defaults train what Giambagli et al. (2023) train: eigenvectors, and eigenvalues of outputs starting from 1;
    eigenvalues of inputs stay at 0.

    The coefficients are the paper's. Compared with coefficients of the size of weight decay, they cost uncut students
    nothing and let more be cut. Validation accuracy in % of students trained on labels for 30 epochs: uncut (and NLL);
    with a share of the units cut and no fine-tuning; with half of them cut and 10 epochs of fine-tuning at 0.02. Means
    of 3 seeds (and their standard deviation), resnet 8 and mlp 3 of width 0.5, 2,000 images of Fashion-MNIST, half of
    them for validation, torch 2.15, AMD EPYC:

                                         uncut      30 %   50 %   70 %   90 %   50 %, fine-tuned
        digits, resnet   0.01, 5e-4      98.5 (.04)  98.0   97.0   90.4   52.4   98.2 +- 0.3
                         2.5e-4, 2.5e-4  98.0 (.07)  96.8   92.5   79.2   47.0   96.6 +- 0.6
        digits, mlp      0.01, 5e-4      96.9 (.12)  96.9   96.9   96.8   96.2   96.8 +- 0.4
                         2.5e-4, 2.5e-4  97.2 (.12)  97.2   97.1   96.8   92.5   97.1 +- 0.6
        Fashion, resnet  0.01, 5e-4      85.2 (.42)  82.9   79.2   65.8   38.4   83.2 +- 0.1
                         2.5e-4, 2.5e-4  85.0 (.47)  79.6   71.8   54.2   42.6   82.9 +- 1.0
        Fashion, mlp     0.01, 5e-4      83.6 (.47)  83.6   83.6   83.6   81.6   83.3 +- 0.2
                         2.5e-4, 2.5e-4  83.9 (.78)  83.9   83.6   83.2   72.0   83.6 +- 0.2
    """

    train_inputs: bool = False
    train_outputs: bool = True
    train_eigenvectors: bool = True
    eigenvector_l2: float = Field(default=0.01, ge=0.0)
    eigenvalue_l2: float = Field(default=5e-4, ge=0.0)

    @model_validator(mode="after")
    def _trained(self) -> Self:
        if not (self.train_inputs or self.train_outputs or self.train_eigenvectors):
            raise ValueError("must train one of inputs, outputs and eigenvectors")
        return self


class Pruning(Part):
    """How much is cut after training, and how."""

    fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the network's units (coupled channels count once) to cut; 0 turns pruning off."""
    scope: Literal["network", "layer"] = "network"
    """Whether to cut the least important units of the whole network, or the same share of every group of coupled
    layers."""
    floor: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of each layer's units that is kept whatever their rank; at least one always is."""
    round_to: int = Field(default=1, ge=1, le=10_000)
    """The number of remaining units of each layer is rounded up to a multiple of this, up to all of them; hardware that
    computes 8 channels at a time is as slow with 9 as with 16."""
    rounds: int = Field(default=1, ge=1, le=100)
    """Number of cuts in which the fraction is reached; each removes the same share of the units then left, so that the
    network has equally much to recover from each time (equal steps would remove ever larger shares)."""
    reconstruct: bool = True
    """Whether the remaining weights are fitted to their layers' outputs before the cut."""
    fine_tune_epochs: int = Field(default=10, ge=0, le=100_000)
    """Total after all cuts, split evenly between them; if there is a remainder, earlier cuts get an epoch more."""
    fine_tune_learning_rate: float = Field(default=0.05, gt=0.0)
    """0.05 was better than 0.02 in 8 of 12 comparisons and worse in 2 (resnet 8 of width 0.5 on digits and
    Fashion-MNIST, 30 to 90 % of the units cut)."""

    def schedule(self) -> "tuple[Round, ...]":
        """The cuts, at least one, and how long the network is fine-tuned after each."""
        if not self.fraction:
            return (Round(self, 0),)
        each, rest = divmod(self.fine_tune_epochs, self.rounds)
        return tuple(
            Round(
                self.model_copy(
                    update={
                        "fraction": 1 - (1 - self.fraction) ** (turn / self.rounds),
                        "rounds": turn,
                        "fine_tune_epochs": turn * each + min(turn, rest),
                    }
                ),
                each + (turn <= rest),
            )
            for turn in range(1, self.rounds + 1)
        )


class Round(NamedTuple):
    """One cut of several."""

    so_far: Pruning
    """What this cut and those before it amount to: choices that alone give the same student."""
    epochs: int
    """Epochs of fine-tuning after it."""


def in_one_level(raw: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """Recipe names with nested namespaces flattened: `{student: {width: 1}}` becomes `{student.width: 1}`.

    Raises:
        BadInput: a name then appears twice.
    """
    flat: dict[Any, Any] = {}
    for name, value in raw.items():
        # all parameter names but two have a dot; a user's class may have one before its colon
        space = isinstance(name, str) and name not in RECIPE_NAMES and "." not in name.rpartition(":")[2]
        for key, inner in value.items() if space and isinstance(value, Mapping) else [(None, value)]:
            full = name if key is None else f"{name}.{key}"
            if full in flat:
                raise BadInput(f"`{where}.{full}` must appear once, but appears twice; remove one")
            flat[full] = inner
    return flat


_PARTS: dict[str, type[Part]] = {"student": Student, "training": Training, "spectral": Spectral, "pruning": Pruning}

STARTS: Mapping[str, Mapping[str, Scalar]] = {
    "scratch": {},
    "teacher": {"training.epochs": 10, "training.learning_rate": 0.02, "training.max_gradient_norm": 3.0},
}
"""What a student can start as, and the defaults that it has then in place of the ordinary ones."""

RECIPE_NAMES: tuple[str, ...] = (
    "transfer",
    "seed",
    *(f"{part}.{field}" for part, model in _PARTS.items() for field in model.model_fields),
)
"""The namespaced names of every choice that is not a transfer method's own."""


class Recipe(Part):
    """Every choice that defines one student. Frozen, checked on construction, equal to itself after JSON.

    Its written form in JSON, study files and MLflow is flat: `{"student.width": 0.5, "transfer": "kd",
    "kd.temperature": 4.0, ...}`.
    """

    student: Student = Student()
    transfer: str = Field(default="none", min_length=1)
    """A name in `trainers.transfer.METHODS`."""
    options: tuple[tuple[str, Scalar], ...] = ()
    """The transfer method's own parameters as sorted pairs, without its name; those left out take their defaults."""
    training: Training = Training()
    spectral: Spectral = Spectral()
    pruning: Pruning = Pruning()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @field_validator("options")
    @classmethod
    def _in_one_order(cls, options: tuple[tuple[str, Scalar], ...]) -> tuple[tuple[str, Scalar], ...]:
        names = [name for name, _ in options]
        if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
            raise ValueError("must have names of letters, digits and `_`, each once")
        return tuple(sorted(options, key=lambda option: option[0]))

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Self:
        """The recipe that `flat` names; what it leaves out takes its default.

        Raises:
            BadInput: an unknown name, an option of a method other than the drawn one, a value out of range.
        """
        transfer = flat.get("transfer", "none")
        parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
        options: dict[str, Scalar] = {}
        start = flat.get("student.start")
        for name, value in (STARTS.get(start, {}) if isinstance(start, str) else {}).items():
            namespace, _, field = name.rpartition(".")
            parts[namespace][field] = value
        for name, value in flat.items():
            if name in ("transfer", "seed"):
                continue
            namespace, _, field = name.rpartition(".")
            if name in RECIPE_NAMES:
                parts[namespace][field] = value
            elif namespace == transfer and field:
                if not isinstance(value, Scalar) or (isinstance(value, float) and not math.isfinite(value)):
                    raise BadInput(f"`{name}` must be a finite number, a string or true/false, but got {shown(value)}")
                options[field] = value
            else:
                way_out = known([*RECIPE_NAMES, f"{transfer}.*"], name)
                raise BadInput(f"`{name}` is not a choice of a recipe with transfer `{transfer}`; {way_out}")
        try:
            top = {key: flat[key] for key in ("transfer", "seed") if key in flat}
            return cls.model_validate({**top, **parts, "options": tuple(options.items())})
        except ValidationError as error:
            raise BadInput(one_line(error, cls)) from None

    def flat(self) -> dict[str, Scalar]:
        """Every choice under its namespaced name."""
        flat: dict[str, Scalar] = {"transfer": self.transfer}
        for part in _PARTS:
            for field, value in getattr(self, part):
                flat[f"{part}.{field}"] = value
        flat.update({f"{self.transfer}.{name}": value for name, value in self.options})
        flat["seed"] = self.seed
        return flat

    def to_json(self) -> str:
        """The flat form as one line of JSON with sorted keys."""
        return json.dumps(self.flat(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The recipe that `to_json` wrote."""
        return cls.from_flat(json.loads(text))
