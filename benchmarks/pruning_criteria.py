"""What to cut: the spectral importance against other criteria, at equal parameters; writes docs/pruning_criteria.md.

    python benchmarks/pruning_criteria.py             # about 40 minutes on 2 cores; continues where it was interrupted
    python benchmarks/pruning_criteria.py --quick     # minutes: does everything work? writes no document
    python benchmarks/pruning_criteria.py --table     # only writes the document, from existing results

Residual students of Fashion-MNIST are trained once per seed, cut to the same numbers of parameters by each criterion,
and fine-tuned alike. The other criteria are Torch-Pruning's own, at its defaults. In every case the units to cut are
chosen by `trainers.spectral.plan`, with the same floor: across the whole network, the least important first.

Other variants were compared beforehand on validation images of another data set (digits), with other seeds.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
import torch_pruning as tp
from common import ROOT, Line, against, arguments, hardware, read, run_all, spread
from torch import Tensor, nn

from spaces import Student
from trainers.computing import computing
from trainers.data import load_dataset
from trainers.data.dataset import Dataset, Split, pixels
from trainers.families import Network, build
from trainers.files import digest, write_whole
from trainers.loop import Batch, Schedule, fit
from trainers.measure import predictions, quality
from trainers.seeding import seeded
from trainers.spectral import cut, fold, plan, rescale, spectral_penalty, spectralize, trace
from trainers.store import weights_bytes
from trainers.trainer import SEEN

DOCUMENT = ROOT / "docs" / "pruning_criteria.md"
TAYLOR_BATCHES = 16
"""Batches over which Taylor importances are averaged."""


@dataclass(frozen=True)
class Training:
    """How a student is trained before the cut."""

    name: str
    spectral: bool
    eigenvector_l2: float = 0.01
    eigenvalue_l2: float = 5e-4
    gain_l1: float = 0.0
    """On |gamma| of every batch norm."""


@dataclass(frozen=True)
class Setting:
    """What all runs of one table have in common."""

    dataset: str
    split: str
    """What is measured on: `validation` or `test`."""
    images: int | None
    """Training images; None: all."""
    seeds: tuple[int, ...]
    removed: tuple[float, ...]
    """Shares of the parameters."""
    depth: int = 8
    width: float = 0.5
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    fine_tune_epochs: int = 2
    fine_tune_learning_rate: float = 0.02
    floor: float = 0.1


REPORTED = Setting("fashion_mnist", "test", 4000, (0, 1, 2), (0.3, 0.5, 0.7, 0.8, 0.9, 0.95))
TRIED = Setting("digits", "validation", None, (100, 101, 102), (0.5, 0.8, 0.9), epochs=20)
"""None of its images and seeds are those of the reported table."""


@dataclass(frozen=True)
class Job:
    """One student, cut one way to one size."""

    training: Training
    criterion: str
    removed: float
    seed: int
    fitted: bool = False
    """Whether the remaining weights are fitted to their layers' outputs before the cut, and rescaled to their initial
    size before fine-tuning, as in trials."""

    @property
    def key(self) -> str:
        """Everything that it depends on, but for the setting."""
        said = asdict(self)
        return json.dumps(said if said.pop("fitted") is False else asdict(self), sort_keys=True)

    @property
    def label(self) -> str:
        """The criterion, and what else there is."""
        return f"{self.criterion}, fitted" if self.fitted else self.criterion


SPECTRAL = Training("spectral", spectral=True)
MILD = Training("spectral, mild L2", True, 2.5e-4, 2.5e-4)
SPARSE = Training("spectral, gains penalised", True, 2.5e-4, 2.5e-4, gain_l1=0.03)
ORDINARY = Training("ordinary", False, 0.0, 0.0)
OURS = "spectral"
OTHERS = ("magnitude", "batch-norm scale", "taylor", "random")
VARIANTS = ("by the mean", "gain", "gain x column")


def jobs(setting: Setting) -> Iterator[Job]:
    """Everything of one table, a seed after the other."""
    arms = {SPECTRAL: (OURS,), ORDINARY: OTHERS}
    fitted = {SPECTRAL: (OURS, *OTHERS), ORDINARY: OTHERS}
    if setting.split == "validation":
        arms |= {MILD: (OURS, *VARIANTS), SPARSE: (OURS, *VARIANTS)}
        fitted = {SPECTRAL: (OURS, *VARIANTS, "magnitude", "taylor"), MILD: (OURS, *VARIANTS)}
    for seed in setting.seeds:
        for removed in setting.removed:
            for training, criteria in arms.items():
                yield from (Job(training, criterion, removed, seed) for criterion in criteria)
            for training, criteria in fitted.items():
                yield from (Job(training, criterion, removed, seed, fitted=True) for criterion in criteria)


@dataclass(frozen=True)
class Loaded:
    """What each process reads once."""

    setting: Setting
    data: Dataset
    folder: Path
    """Where trained students are kept."""


_loaded: Loaded | None = None


def load(setting: Setting, folder: Path) -> None:
    """In each process, once."""
    global _loaded
    torch.set_num_threads(1)
    data = load_dataset(setting.dataset, root=None, download=False, train_limit=setting.images, image_size=None)
    _loaded = Loaded(setting, data, folder)


def loaded() -> Loaded:
    """What `load` left."""
    assert _loaded is not None
    return _loaded


def train(job: tuple[Training, int]) -> Line:
    """Train a student and keep it."""
    (training, seed), here = job, loaded()
    setting, began = here.setting, time.monotonic()
    with computing(1):
        generator = torch.Generator().manual_seed(seed)
        student = untrained(training, generator)
        norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]

        def loss(batch: Batch) -> Tensor:
            penalty = spectral_penalty(
                student, eigenvector_l2=training.eigenvector_l2, eigenvalue_l2=training.eigenvalue_l2
            )
            gains = sum(norm.weight.abs().sum() for norm in norms) if training.gain_l1 else 0.0
            return F.cross_entropy(student(batch.images), batch.labels) + penalty + training.gain_l1 * gains

        schedule = Schedule(setting.epochs, setting.batch_size, setting.learning_rate, 0.9, setting.weight_decay)
        fit(student, loss, here.data.train, schedule, policy="none", generator=generator)
        write_whole(kept(training, seed), weights_bytes(student))
        accuracy = correct(student, here.data.validation)
    return {"training": training.name, "accuracy": accuracy, "seconds": time.monotonic() - began}


def untrained(training: Training, generator: torch.Generator) -> Network:
    """A student as it begins; students of one seed begin with the same weights."""
    here = loaded()
    shape = Student(depth=here.setting.depth, width=here.setting.width)
    student = build(shape, here.data.image_shape, here.data.classes, generator=generator)
    student.set_normalization(*here.data.mean_std())
    if training.spectral:
        student = spectralize(student, keep=student.heads)
    return student.to(memory_format=torch.channels_last)


def kept(training: Training, seed: int) -> Path:
    """The file of a trained student."""
    return loaded().folder / f"{digest(asdict(training), seed)}.safetensors"


def carry_out(job: Job) -> Line:
    """Cut, measure, fine-tune, measure."""
    here, began = loaded(), time.monotonic()
    setting, data = here.setting, here.data
    split = data.test if setting.split == "test" else data.validation
    with computing(1):
        student = untrained(job.training, torch.Generator().manual_seed(0))
        student.load_state_dict(safetensors.torch.load_file(kept(job.training, job.seed)))
        if not job.training.spectral:
            student = spectralize(student, keep=student.heads)  # the same function: only spectral layers are cut
        student.eval()
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(job.seed))
        images = pixels(data.train.images[order[:SEEN]]) if job.fitted else None
        network = cut_to(student, CRITERIA[job.criterion](student, job.seed), job.removed, images)
        network = network.to(memory_format=torch.channels_last)
        renormalize(network, data.train)
        before = correct(network, split)
        if job.fitted:
            rescale(network, trace(network, data.image_shape))

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(network(batch.images), batch.labels)

        schedule = Schedule(
            setting.fine_tune_epochs, setting.batch_size, setting.fine_tune_learning_rate, 0.9, setting.weight_decay
        )
        generator = torch.Generator().manual_seed(job.seed)
        fit(network, loss, data.train, schedule, policy="none", generator=generator)
        after = correct(network, split)
    return {
        "key": job.key,
        "uncut": correct(fold(student), split),
        "before": before,
        "after": after,
        "parameters": parameters(network),
        "share": parameters(network) / parameters(fold(student)),
        "seconds": time.monotonic() - began,
    }


Importance = Mapping[str, Tensor] | None
"""Of the units of layers by name; None: the project's own."""


def cut_to(student: Network, importance: Importance, removed: float, images: Tensor | None) -> Network:
    """The student, fitted on `images`, with as few units cut as leave at most `1 - removed` of its parameters."""
    setting, shape = loaded().setting, loaded().data.image_shape
    traced = trace(student, shape)
    units = plan(traced, 0.0, floor=setting.floor, importance=importance).units

    def smaller(count: int, images: Tensor | None = None) -> Network:
        planned = plan(traced, count / units, floor=setting.floor, importance=importance)
        return cut(student, planned, images=images)

    low, high, allowed = 0, units - 1, (1 - removed) * parameters(fold(student))
    while low < high:  # more units cut are never more parameters
        middle = (low + high) // 2
        if parameters(smaller(middle)) <= allowed:
            high = middle
        else:
            low = middle + 1
    return smaller(low, images)


def parameters(network: nn.Module) -> int:
    """Of an ordinary network."""
    return sum(parameter.numel() for parameter in network.parameters())


def renormalize(network: nn.Module, split: Split) -> None:
    """Recalibrate batch norms: their average over batches of the training images as the cut network sees them."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    with torch.no_grad():
        for images in split.images.split(500):
            network.train()(pixels(images))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def correct(network: nn.Module, split: Split) -> float:
    """Accuracy in %."""
    return 100 * quality(predictions(network, split), split.labels)["accuracy"]


GroupImportance = Callable[[Any], Tensor]
"""Torch-Pruning's: of a group of coupled channels, (units of its root,)."""


def by_group(network: Network, importance: GroupImportance) -> dict[str, Tensor]:
    """The importance of each group of an ordinary network, under the name of the group's root."""
    example = torch.zeros(2, *loaded().data.image_shape)
    graph = tp.DependencyGraph().build_dependency(network, example_inputs=example, verbose=False)
    names = {module: name for name, module in network.named_modules()}
    head = network.get_submodule(network.heads[0])
    groups = graph.get_all_groups(ignored_layers=[head], root_module_types=[nn.Conv2d, nn.Linear])
    return {names[group[0].dep.target.module]: importance(group) for group in groups}


def ours(student: Network, seed: int) -> Importance:
    """The spectral importance."""
    return None


def spectral_importance(network: Network, *, lengths: bool, columns: bool) -> GroupImportance:
    """Other readings of the spectral importance, each relative to the group's mean.

    Args:
        network: folded.
        lengths: whether |lambda_i| ||phi_i|| / sigma_i counts beside |gamma_i| where a batch norm follows.
        columns: whether what the next layers do with the unit counts: the norm of their weights from it, their own
            batch norms' gamma / sigma included.
    """
    leaves = [module for module in network.modules() if not list(module.children())]
    norms = {layer: norm for layer, norm in pairwise(leaves) if isinstance(norm, nn.BatchNorm2d)}

    def importance(group: Any) -> Tensor:
        made, used = torch.zeros(len(group[0].idxs)), torch.zeros(len(group[0].idxs))
        for item in group:
            layer = item.dep.target.module
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            weight, norm = layer.weight.detach().flatten(1), norms.get(layer)
            weight = weight.unflatten(1, (layer.weight.shape[1], -1))
            if norm is not None:
                assert norm.running_var is not None
                gain = norm.weight.detach().abs()
                weight = weight * (gain / (norm.running_var + norm.eps).sqrt())[:, None, None]
            if item.dep.handler in (tp.prune_conv_out_channels, tp.prune_linear_out_channels):
                rows = weight.flatten(1).norm(dim=1) if lengths or norm is None else gain
                made.index_add_(0, torch.tensor(item.root_idxs), rows[item.idxs].square())
            else:
                column = weight.transpose(0, 1).flatten(1).norm(dim=1)
                used.index_add_(0, torch.tensor(item.root_idxs), column[item.idxs].square())
        score = (made * used if columns else made).sqrt()
        return score / score.mean()

    return importance


def reading(*, lengths: bool, columns: bool) -> Callable[[Network, int], Importance]:
    """A criterion of it."""

    def criterion(student: Network, seed: int) -> Importance:
        network = fold(student)
        return by_group(network, spectral_importance(network, lengths=lengths, columns=columns))

    return criterion


def magnitude(student: Network, seed: int) -> Importance:
    """L2 norms of all weights that a unit has to do with (H. Li et al., ICLR 2017; G. Fang et al., CVPR 2023)."""
    return by_group(fold(student), tp.importance.GroupMagnitudeImportance())


def norm_scale(student: Network, seed: int) -> Importance:
    """|gamma| of batch norms (Z. Liu et al., Learning efficient convolutional networks ..., ICCV 2017)."""
    return by_group(fold(student), tp.importance.BNScaleImportance())


def taylor(student: Network, seed: int) -> Importance:
    """First-order effect on the loss (P. Molchanov et al., CVPR 2019), averaged over batches of training images."""
    here, network = loaded(), fold(student).eval()
    train = here.data.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    totals: dict[str, Tensor] = {}

    def importance(group: Any) -> Tensor:
        score: Tensor = tp.importance.GroupTaylorImportance()(group)
        return score

    for index in order.split(here.setting.batch_size)[:TAYLOR_BATCHES]:
        network.zero_grad()
        F.cross_entropy(network(pixels(train.images[index])), train.labels[index]).backward()
        for root, score in by_group(network, importance).items():
            totals[root] = totals.get(root, 0.0) + score / TAYLOR_BATCHES
    return totals


def chance(student: Network, seed: int) -> Importance:
    """Drawn."""
    with seeded(torch.Generator().manual_seed(seed)):
        return by_group(fold(student), tp.importance.RandomImportance())


CRITERIA: Mapping[str, Callable[[Network, int], Importance]] = {
    OURS: ours,
    "by the mean": reading(lengths=True, columns=False),
    "gain": reading(lengths=False, columns=False),
    "gain x column": reading(lengths=False, columns=True),
    "magnitude": magnitude,
    "batch-norm scale": norm_scale,
    "taylor": taylor,
    "random": chance,
}


def shown(line: Line) -> str:
    """A line for the terminal."""
    if "training" in line:
        return f"trained {line['training']}: {line['accuracy']:.2f}"
    job = json.loads(line["key"])
    return (
        f"{job['training']['name']:10} {job['criterion']:18} {'fitted' if job.get('fitted') else '':6} "
        f"{job['removed']:.2f} removed  "
        f"{line['before']:.2f} -> {line['after']:.2f}"
    )


def run(setting: Setting, folder: Path, path: Path, processes: int) -> None:
    """Do what is not done yet."""
    left = [job for job in jobs(setting) if job.key not in read(path, "key")]
    if not left:
        return
    load(setting, folder)
    students = dict.fromkeys((job.training, job.seed) for job in left)
    untrained_yet = [student for student in students if not kept(*student).exists()]
    log = folder / "trained.jsonl"
    run_all(untrained_yet, train, log, processes, shown=shown, load=load, load_with=(setting, folder))
    run_all(left, carry_out, path, processes, shown=shown, load=load, load_with=(setting, folder))


Runs = dict[tuple[str, str, float], dict[int, Line]]
"""The results by training, label of the criterion and share removed; then by seed."""


def collected(setting: Setting, results: Mapping[str, Line]) -> Runs:
    """What has been run of a table."""
    runs: Runs = {}
    for job in jobs(setting):
        if job.key in results:
            runs.setdefault((job.training.name, job.label, job.removed), {})[job.seed] = results[job.key]
    return runs


def accuracies(setting: Setting, runs: Runs) -> list[str]:
    """Before and after fine-tuning, in rows."""
    rows = ["| trained | criterion | " + " | ".join(f"{100 * removed:g} %" for removed in setting.removed) + " |"]
    rows.append("| --- | --- |" + " --- |" * len(setting.removed))
    for training, criterion in dict.fromkeys((training, criterion) for training, criterion, _ in runs):
        cells = []
        for removed in setting.removed:
            lines = runs.get((training, criterion, removed), {}).values()
            before, after = (spread((line[when] for line in lines), 1) for when in ("before", "after"))
            cells.append(f"{before} → {after} ({len(lines)})" if lines else "not run yet")
        rows.append(f"| {training} | {criterion} | " + " | ".join(cells) + " |")
    return rows


def differences(setting: Setting, runs: Runs, ours: str) -> list[str]:
    """`ours` on the spectral student minus every other criterion, seed by seed, after fine-tuning."""
    rows = [f"| {ours} against | " + " | ".join(f"{100 * removed:g} %" for removed in setting.removed) + " |"]
    rows.append("| --- |" + " --- |" * len(setting.removed))
    for training, criterion in dict.fromkeys((training, criterion) for training, criterion, _ in runs):
        if (training, criterion) == (SPECTRAL.name, ours):
            continue
        cells = []
        for removed in setting.removed:
            mine, theirs = (
                {seed: line["after"] for seed, line in runs.get(key, {}).items()}
                for key in ((SPECTRAL.name, ours, removed), (training, criterion, removed))
            )
            cells.append(against(mine, theirs) if mine.keys() & theirs.keys() else "not run yet")
        rows.append(f"| {criterion}, {training} | " + " | ".join(cells) + " |")
    return rows


def section(setting: Setting, results: Mapping[str, Line]) -> list[str]:
    """What is said of one table, and the table."""
    runs, wanted = collected(setting, results), list(jobs(setting))
    lines = [line for own in runs.values() for line in own.values()]
    images = "all" if setting.images is None else f"{setting.images:,}"
    said = [
        f"- {setting.dataset}: {images} training images, no augmentation, measured on the {setting.split} images. "
        f"Seeds {', '.join(map(str, setting.seeds))}: runs with one seed start from the same weights and see the same "
        "batches.",
        f"- Student: resnet {setting.depth}, width {setting.width:g}; {setting.epochs} epochs, batches of "
        f"{setting.batch_size}, SGD {setting.learning_rate:g}. Fine-tuning: {setting.fine_tune_epochs} epochs, "
        f"{setting.fine_tune_learning_rate:g}, weight decay {setting.weight_decay:g} for all.",
    ]
    if not lines:
        return [*said, "", "None of this has been run yet.", ""]
    uncut: dict[str, dict[int, float]] = {}
    for (training, _, _), own in runs.items():
        uncut.setdefault(training, {}).update({seed: line["uncut"] for seed, line in own.items()})
    missing = len(wanted) - len(lines)
    off = max(1 - job.removed - results[job.key]["share"] for job in wanted if job.key in results)
    return [
        *said,
        f"- Before the cut: {'; '.join(f'{name}: {spread(own.values())} %' for name, own in uncut.items())}.",
        f"- Only whole units are cut: up to {100 * off:.1f} % more of the parameters are removed than the column "
        "says, never less.",
        *([f"- {missing} of {len(wanted)} runs are not in it yet."] if missing else []),
        f"- {hardware(lines)}; one thread per run.",
        "",
        "Accuracy in % before → after fine-tuning: mean ± standard deviation over seeds (their number), by the share "
        "of parameters removed.",
        "",
        *accuracies(setting, runs),
        "",
    ]


def document(tables: Sequence[tuple[Setting, Mapping[str, Line]]]) -> str:
    """The whole, in Markdown."""
    (tried, tried_results), (reported, reported_results) = tables
    return "\n".join(
        [
            "# What to cut",
            "",
            "Written by `python benchmarks/pruning_criteria.py`. Each student is trained once, cut by every criterion "
            "to the same share of its parameters, and fine-tuned alike.",
            "",
            "- `spectral, fitted` is what Dux does. The others are Torch-Pruning's own at its defaults: "
            f"GroupMagnitude, BNScale, GroupTaylor (averaged over {TAYLOR_BATCHES} batches), Random. All are ranked "
            "across the whole network by the same plan with the same floor, a tenth of each layer.",
            "- *Spectral* students are trained in eigenvalues and eigenvectors with the paper's penalties (0.01 sum "
            "phi² + 0.0005 sum lambda²); *ordinary* ones with weight decay. Rows on the same spectral student compare "
            "criteria alone. The fair comparison of methods is with the ordinary student, which is what users of "
            "another criterion would train.",
            "- After a cut, batch norms are recalibrated on the training images, for every criterion; `before` is "
            "measured after that. *Fitted*: the remaining weights are fitted by least squares to their layers' outputs "
            f"before the cut, and the last layer to the probabilities, on {SEEN:,} training images; and before "
            "fine-tuning, weights followed by a batch norm are rescaled to their size at initialisation. Every trial "
            "of Dux does this; here it is done for every criterion.",
            "",
            "In short (commit 220385c, three seeds): Dux's method leads every ordinary student cut by another "
            "criterion, at every share, by 1 to 12 points up to 90 % (more against random); from 50 to 80 %, in 11 of "
            "12 cases by more than the spread. Part of the lead comes from the fit, which also helps ordinary "
            "students; the rest comes from spectral training: fitted ordinary students are 0.5 to 4 points behind "
            "(random: 1 to 6), in 18 of 24 cases within the spread of three seeds. Which units are cut matters least: "
            "on a spectral student the criterion makes no difference beyond the spread, except that magnitude is half "
            "a point better at 70 %; random is behind from 70 % on, within the spread.",
            "",
            "## On the test split",
            "",
            *section(reported, reported_results),
            "Differences after fine-tuning, in points: mean over seeds and the half-width of its 95 % interval "
            "(Student's t).",
            "",
            *differences(reported, collected(reported, reported_results), OURS),
            "",
            *differences(reported, collected(reported, reported_results), f"{OURS}, fitted"),
            "",
            "## What was tried, on validation data",
            "",
            "- `by the mean`: |lambda| ‖phi‖ times gamma / sigma where a batch norm follows, as shares of the mean of "
            "the coupled channels. `gain`: |gamma| alone there, coupled channels by the root of the sum of squares. "
            "`gain x column`: that, times the norm of the next layers' weights for the unit. (`spectral` is |gamma| "
            "as shares of the layer's mean, coupled channels by their mean.)",
            f"- *{MILD.name}*: {MILD.eigenvector_l2:g} of both squares. *{SPARSE.name}*: that, and "
            f"{SPARSE.gain_l1:g} sum |gamma|, which batch norm does not undo.",
            "",
            *section(tried, tried_results),
        ]
    )


def main() -> None:
    """The command."""
    given = arguments("What to cut: the spectral importance against other criteria.")
    settings = [TRIED, REPORTED]
    if given.quick:
        tiny = {"images": 200, "epochs": 1, "fine_tune_epochs": 1, "removed": (0.6,), "width": 0.25}
        settings = [replace(setting, **tiny, seeds=setting.seeds[:2]) for setting in settings]
    tables = []
    for setting in settings:
        name = f"pruning_criteria_{digest(asdict(setting))}"
        path = given.home / f"{name}.jsonl"
        if not given.table:
            (given.home / name).mkdir(exist_ok=True)
            run(setting, given.home / name, path, given.processes)
        tables.append((setting, read(path, "key")))
    text = document(tables)
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
