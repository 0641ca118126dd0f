"""An exported student is the one that was measured, and its card says so; anything else is refused."""

import hashlib
import json
import math
import os
import re
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from running import Finished, Said
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from torch import nn

from search.errors import ExportRefused
from search.export import TOLERANCE, export, verify
from search.formats import FORMATS
from search.fronts.front import Entry
from search.fronts.selection import select
from spaces import BadInput, Student
from trainers import load_student
from trainers.data import pixels
from trainers.data.dataset import Split
from trainers.families import build, by_member
from trainers.spectral import cut, plan, spectralize, trace

KNOWN = ", ".join(sorted(FORMATS))
BOUNDS = ("--max", "parameters=10k")


@dataclass(frozen=True)
class Exported:
    """What `dux export` wrote in both formats."""

    folder: Path
    out: str
    entry: Entry
    card: dict[str, Any]


@pytest.mark.parametrize("student", [Student(depth=8, width=0.25, members=3), Student(family="mlp", members=2)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_batch_ensemble_is_one_graph_that_averages_its_members_probabilities(name: str, student: Student) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = spectralize(build(student, (1, 8, 8), 10, generator=generator), keep=["classifier"])
    network = cut(whole, plan(trace(whole, (1, 8, 8)), 0.4, floor=0.1)).eval()
    images = torch.randint(256, (7, 1, 8, 8), generator=generator, dtype=torch.uint8)
    content = FORMATS[name].write(network, pixels(images[:2]), {})
    with torch.no_grad():
        expected = by_member(network.outputs(pixels(images)), student.members).softmax(2).mean(0)
    for count in (7, 1):  # any batch size
        torch.testing.assert_close(FORMATS[name].run(content, images[:count]).softmax(1), expected[:count])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture
def exported(finished: Finished, folder: Path, dux: Callable[..., Said]) -> Exported:
    """Once for the module; the best student of at most 10,000 parameters."""
    out = folder / "new" / "folder"
    said = folder / "said.txt"
    if not said.exists():
        arguments = ("export", "tiny", "--home", finished.home, *BOUNDS, "--out", out, "--format", ",".join(FORMATS))
        code, printed, err = dux(*arguments)
        assert (code, err) == (0, "")
        said.write_text(printed)
    card = json.loads((out / "card.json").read_text())
    (entry,) = (entry for entry in finished.study.front().entries if entry.trial == card["trial"])
    return Exported(out, said.read_text(), entry, card)


def session(path: Path) -> Any:
    import onnxruntime  # here, after an export has turned its telemetry off

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A home with the tiny study's files and ledger, to be tampered with."""
    shutil.copytree(finished.home / "studies", tmp_path / "home" / "studies")
    shutil.copy(finished.home / "ledger.db", tmp_path / "home")
    return tmp_path / "home"


def test_the_onnx_file_computes_the_measured_network(finished: Finished, exported: Exported) -> None:
    network = load_student(finished.study.files.trial(exported.entry.trial))
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(64, 1, 8, 8, generator=generator)
    (actual,) = session(exported.folder / f"tiny-{exported.entry.trial}.onnx").run(
        ["logits"], {"images": images.numpy()}
    )
    with torch.no_grad():
        expected = network(images).numpy()
    assert np.abs(actual - expected).max() <= 1e-4
    assert (actual.dtype, actual.shape) == (np.float32, (64, 10))


def test_its_accuracy_in_onnx_runtime_is_the_recorded_one(finished: Finished, exported: Exported) -> None:
    validation = finished.study.file.task.load_data().validation
    images = {"images": pixels(validation.images).numpy()}
    (logits,) = session(exported.folder / f"tiny-{exported.entry.trial}.onnx").run(["logits"], images)
    hits = int((logits.argmax(1) == validation.labels.numpy()).sum())
    assert hits / len(validation) == exported.entry.measurements["accuracy"]


@pytest.mark.parametrize("batch", [1, 7])
def test_the_exported_student_takes_any_batch_size(batch: int, finished: Finished, exported: Exported) -> None:
    images = torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = load_student(finished.study.files.trial(exported.entry.trial))(images)
        alone = torch.export.load(exported.folder / f"tiny-{exported.entry.trial}.pt2").module()(images)
    (actual,) = session(exported.folder / f"tiny-{exported.entry.trial}.onnx").run(
        ["logits"], {"images": images.numpy()}
    )
    assert actual.shape == (batch, 10)
    assert float((torch.from_numpy(actual) - expected).abs().max()) <= 1e-4
    assert float((alone - expected).abs().max()) <= 1e-4


def test_the_onnx_file_is_one_sound_file_with_named_ends(exported: Exported) -> None:
    path = exported.folder / f"tiny-{exported.entry.trial}.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(end.name, end.type, end.shape[1:]) for end in session(path).get_inputs()] == [
        ("images", "tensor(float)", [1, 8, 8])
    ]
    assert [(end.name, end.shape[1:]) for end in session(path).get_outputs()] == [("logits", [10])]
    # as small as what was cut: the weights, which the file holds, and a few kB for the graph
    parameters = exported.entry.measurements["parameters"]
    assert 4 * parameters <= path.stat().st_size <= 4 * parameters + 60_000


def test_nothing_but_the_files_asked_for_and_the_card_is_written(exported: Exported) -> None:
    trial = exported.entry.trial
    names = {*(f"tiny-{trial}.{name}" for name in FORMATS), "card.json"}
    assert {path.name for path in exported.folder.iterdir()} == names
    assert exported.out.startswith(f"trial {trial}: accuracy ")
    assert {line for line in exported.out.splitlines() if line.startswith("wrote ")} == {
        f"wrote {exported.folder / name}" for name in names
    }


def test_the_card_says_what_the_student_is(finished: Finished, exported: Exported) -> None:
    study, card, entry = finished.study, exported.card, exported.entry
    assert (card["study"], card["trial"]) == ("tiny", entry.trial)
    assert card["recipe"] == entry.recipe
    assert card["mlflow_run_id"] == study.run_ids()[entry.trial]
    assert card["validation"] == entry.measurements
    assert card["teacher_validation"] == study.files.task()["teacher"]
    assert card["input"] == {"name": "images", "shape": ["batch", 1, 8, 8], "type": "float32", "range": [0.0, 1.0]}
    assert card["output"] == {"name": "logits", "shape": ["batch", 10], "type": "float32"}
    assert {"dux-search": version("dux-search"), "torch": version("torch")}.items() <= card["versions"].items()
    assert {"python", "onnx", "onnxruntime"} <= set(card["versions"])


def test_the_card_and_the_files_say_what_the_outputs_mean_and_how_images_are_made(
    finished: Finished, exported: Exported
) -> None:
    digits, preparation = [str(digit) for digit in range(10)], "counts of 0..16 inked pixels, times 255 / 16, rounded"
    assert exported.card["class_names"] == digits
    assert exported.card["images"] == {"colour": "grey", "preparation": preparation}
    record = finished.study.files.task()
    assert (record["class_names"], record["images"]) == (digits, exported.card["images"])
    stem = exported.folder / f"tiny-{exported.entry.trial}"
    in_onnx = {prop.key: prop.value for prop in onnx.load(stem.with_suffix(".onnx")).metadata_props}
    in_archive = dict.fromkeys(("class_names", "image_shape", "image_colour", "image_preparation"), "")
    torch.export.load(stem.with_suffix(".pt2"), extra_files=in_archive)
    for each in (in_onnx, in_archive):
        assert json.loads(each["class_names"]) == digits
        assert json.loads(each["image_shape"]) == [1, 8, 8]
        assert (each["image_colour"], each["image_preparation"]) == ("grey", preparation)


def test_the_cards_hashes_are_those_of_the_files(finished: Finished, exported: Exported) -> None:
    for name, described in exported.card["files"].items():
        content = (exported.folder / name).read_bytes()
        assert described["sha256"] == hashlib.sha256(content).hexdigest()
        assert described["size_bytes"] == len(content)
        assert 0 <= described["largest_logit_difference"] <= TOLERANCE * described["largest_logit"]
    assert set(exported.card["student"]) == {"student.json", "student.safetensors"}
    for name, digest in exported.card["student"].items():
        content = (finished.study.files.trial(exported.entry.trial) / name).read_bytes()
        assert digest == hashlib.sha256(content).hexdigest()


def test_the_cards_test_metrics_are_of_the_test_split(finished: Finished, exported: Exported) -> None:
    test = finished.study.file.task.load_data().test
    images = {"images": pixels(test.images).numpy()}
    (logits,) = session(exported.folder / f"tiny-{exported.entry.trial}.onnx").run(["logits"], images)
    assert exported.card["test"]["accuracy"] == float((logits.argmax(1) == test.labels.numpy()).mean())
    nll = float(nn.functional.cross_entropy(torch.from_numpy(logits).double(), test.labels))
    assert exported.card["test"]["nll"] == pytest.approx(nll, rel=1e-4)
    assert exported.card["test"]["nll"] != exported.card["validation"]["nll"]
    # the temperature is of the validation split: fitting it on the test split would be looking at it
    tau = exported.card["temperature"]
    calibrated = float(nn.functional.cross_entropy(torch.from_numpy(logits).double() / tau, test.labels))
    assert exported.card["test"]["calibrated_nll"] == pytest.approx(calibrated, rel=1e-4)
    validation = finished.study.file.task.load_data().validation
    (ours,) = session(exported.folder / f"tiny-{exported.entry.trial}.onnx").run(
        ["logits"], {"images": pixels(validation.images).numpy()}
    )
    best = float(nn.functional.cross_entropy(torch.from_numpy(ours).double() / tau, validation.labels))
    assert exported.card["validation"]["calibrated_nll"] == pytest.approx(best, rel=1e-4)


def test_the_card_says_how_sure_its_accuracies_are_and_of_how_many_students_it_was_chosen(
    finished: Finished, exported: Exported
) -> None:
    data, card = finished.study.file.task.load_data(), exported.card
    for split in ("validation", "test"):
        said, images = card["accuracy"][split], len(data.splits()[split])
        assert (said["images"], said["accuracy"]) == (images, card[split]["accuracy"])
        right = round(images * said["accuracy"])
        assert said["interval"] == pytest.approx([*binomtest(right, images).proportion_ci(method="wilson")])
    students = len(finished.study.front().entries)
    assert card["chosen_from"] == {"students": students, "validation_images": len(data.validation)}


def test_the_card_has_the_accuracy_of_each_class(finished: Finished, exported: Exported) -> None:
    data = finished.study.file.task.load_data()
    network = load_student(finished.study.files.trial(exported.entry.trial))
    for split in ("validation", "test"):
        said = exported.card["accuracy"][split]
        labels = data.splits()[split].labels.numpy()
        with torch.no_grad():
            taken = network(pixels(data.splits()[split].images)).argmax(1).numpy()
        expected = confusion_matrix(labels, taken, labels=range(10))
        assert [each["name"] for each in said["classes"]] == list(data.class_names)
        assert [each["images"] for each in said["classes"]] == expected.sum(1).tolist()
        assert [each["accuracy"] for each in said["classes"]] == (expected.diagonal() / expected.sum(1)).tolist()
        assert len({each["accuracy"] for each in said["classes"]}) > 1
        first = said["classes"][0]
        interval = binomtest(int(expected[0, 0]), first["images"]).proportion_ci(method="wilson")
        assert first["interval"] == pytest.approx([*interval])
        recalls = [each["accuracy"] for each in said["classes"]]
        assert sum(recalls) / 10 == pytest.approx(exported.card[split]["balanced_accuracy"])


def test_bounds_choose_the_best_student_within(finished: Finished, exported: Exported) -> None:
    within = [entry for entry in finished.study.front().entries if entry.measurements["parameters"] <= 10_000]
    assert exported.entry.measurements["accuracy"] == max(entry.measurements["accuracy"] for entry in within)


def test_both_kinds_of_bounds_are_heard(finished: Finished, tmp_path: Path, dux: Callable[..., Said]) -> None:
    entries = finished.study.front().entries
    middle = sorted(entries, key=lambda entry: entry.measurements["nll"])[1]
    bounds = ("--min", f"accuracy={middle.measurements['accuracy']}", "--max", f"nll={middle.measurements['nll']}")
    code, out, err = dux("export", "tiny", "--home", finished.home, *bounds, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert out.startswith(f"trial {card['trial']}: ")
    assert card["validation"]["accuracy"] >= middle.measurements["accuracy"]
    assert card["validation"]["nll"] <= middle.measurements["nll"]


def test_no_student_within_the_bounds_names_the_nearest_in_one_line(
    finished: Finished, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    bounds = ("--min", "accuracy=1.5", "--max", "parameters=1M")
    code, out, err = dux("export", "tiny", "--home", finished.home, *bounds, "--out", tmp_path / "out")
    best = max(finished.study.front().entries, key=lambda entry: entry.measurements["accuracy"])
    assert (code, out) == (3, "")
    assert err == (
        "dux: no student satisfies accuracy >= 1.5 and parameters <= 1,000,000; the nearest is trial "
        f"{best.trial} with accuracy {best.measurements['accuracy']:.6g} and "
        f"parameters {best.measurements['parameters']:,.0f}\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--format", "onx"),
            f"`--format` must be a known format, but got 'onx'; did you mean `onnx`? known: {KNOWN}",
        ),
        (("--format", ""), f"`--format` must be a known format, but got ''; known: {KNOWN}"),
        (("--format", "onnx,tflite"), f"`--format` must be a known format, but got 'tflite'; known: {KNOWN}"),
        (("--min", "accuracy"), "a bound must read NAME=VALUE, but got 'accuracy'; write for example parameters=50k"),
        (("--max", "size=5"), "a bound must name a measurement, but got 'size'; known are accuracy, "),
        (("--max", "nll=many"), "a quantity must be a finite number, such as 0.9, 50k, 1.5M or 2G, but got 'many'"),
        (("--max", "nll=1", "--min", "nll=0"), "a measurement may have one bound, but nll has two; drop one of"),
    ],
)
def test_bad_arguments_end_in_one_line(
    arguments: tuple[str, ...], message: str, finished: Finished, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    code, out, err = dux("export", "tiny", "--home", finished.home, "--out", tmp_path / "out", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"dux: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def contents(folder: Path) -> dict[str, bytes | None]:
    """What a folder holds, hidden files included, by path; None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.mark.parametrize("way", ["a file", "below a file", "card.json", "network", "disk full"])
def test_a_folder_that_cannot_be_written_is_told_in_one_line_and_left_as_it_was(
    way: str, exported: Exported, finished: Finished, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    network = f"tiny-{exported.entry.trial}.onnx"
    out, why = tmp_path / "out", "Is a directory"
    if "file" in way:
        out.write_text("in the way")
        blamed = out = out / "new" if way == "below a file" else out
        why = "Not a directory" if way == "below a file" else "File exists"
    else:  # an earlier export is there, or a part of it
        blamed = out / ("card.json" if way == "card.json" else network)
        shutil.copytree(exported.folder, out)
    if why == "Is a directory" and way != "disk full":
        blamed.unlink()
        (blamed / "within").mkdir(parents=True)
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if way == "disk full":
        why = "File too large"
        # above SQLite's shared memory, below the network
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        code, said, err = dux("export", "tiny", "--home", finished.home, *BOUNDS, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, said) == (1, "")
    assert err == (
        f"dux: refused: either all files of an export are written or none, but {blamed} cannot be written ({why}); "
        "name another folder with `--out`\n"
    )
    assert contents(tmp_path) == before


def shuffled(weights: bytes) -> bytes:
    """The network that is there, its last layer's rows in another order: another accuracy, the same parameters."""
    tensors = safetensors.torch.load(weights)
    tensors["classifier.weight"] = tensors["classifier.weight"].flip(0).contiguous()
    return bytes(safetensors.torch.save(tensors))


def nudged(weights: bytes) -> bytes:
    """The same predictions a little less sure: the same accuracy and parameters."""
    tensors = safetensors.torch.load(weights)
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name] * 0.9
    return bytes(safetensors.torch.save(tensors))


def moved_a_little(weights: bytes) -> bytes:
    """A single weight by 1e-3: no measurement differs."""
    tensors = safetensors.torch.load(weights)
    tensors["classifier.weight"][0, 0] += 1e-3
    return bytes(safetensors.torch.save(tensors))


def not_a_number(weights: bytes) -> bytes:
    tensors = safetensors.torch.load(weights)
    tensors["classifier.weight"][0, 0] = math.nan
    return bytes(safetensors.torch.save(tensors))


def another_format(weights: bytes) -> bytes:
    """Weights of other names."""
    tensors = safetensors.torch.load(weights)
    return bytes(safetensors.torch.save({f"other.{name}": tensor for name, tensor in tensors.items()}))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        *(
            (change, "must be those that were measured, but student.safetensors was changed")
            for change in (
                shuffled,
                nudged,
                moved_a_little,
                not_a_number,
                another_format,
                lambda weights: weights[:-100],
                lambda weights: b"",
            )
        ),
        (None, "must be those that were measured, but student.safetensors is gone"),
    ],
    ids=[
        "other weights",
        "nearly the same weights",
        "a weight moved by 1e-3",
        "not a number",
        "other names",
        "cut off",
        "empty",
        "gone",
    ],
)
def test_a_student_whose_files_were_changed_is_refused_and_nothing_written(
    tamper: Callable[[bytes], bytes] | None,
    message: str,
    exported: Exported,
    copied: Path,
    tmp_path: Path,
    dux: Callable[..., Said],
) -> None:
    path = copied / "studies" / "tiny" / "trials" / str(exported.entry.trial) / "student.safetensors"
    content = path.read_bytes()
    path.unlink()
    if tamper is not None:
        path.write_bytes(tamper(content))
    code, out, err = dux("export", "tiny", "--home", copied, *BOUNDS, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert re.search(f"dux: refused: the files of trial {exported.entry.trial} {message}", err), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["student.json", "student.safetensors"])
def test_a_student_described_otherwise_or_a_pipe_in_its_place_is_refused_at_once(
    name: str, exported: Exported, copied: Path, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    path = copied / "studies" / "tiny" / "trials" / str(exported.entry.trial) / name
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    began = time.monotonic()
    said = [dux("export", "tiny", "--home", copied, *BOUNDS, "--out", tmp_path / "out")]
    path.unlink()
    path.write_bytes(content.replace(b'"depth": 8', b'"depth": 600002') if name == "student.json" else content[:50])
    said.append(dux("export", "tiny", "--home", copied, *BOUNDS, "--out", tmp_path / "out"))
    assert time.monotonic() - began < 10.0
    rule = f"dux: refused: the files of trial {exported.entry.trial} must be those that were measured, but {name}"
    assert said == [(1, "", f"{rule} is not a file\n"), (1, "", f"{rule} was changed\n")]
    assert not (tmp_path / "out").exists()


def test_a_student_whose_hashes_were_never_recorded_is_refused(finished: Finished, tmp_path: Path) -> None:
    entry = replace(select(finished.study.front(), {}), files={})
    with pytest.raises(ExportRefused, match="must have recorded hashes, but an earlier Dux recorded none"):
        export(finished.study, entry, tmp_path / "out")


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_a_file_that_computes_something_else_is_refused(scale: float) -> None:
    """However large the logits are: what counts is the difference as a share of the largest, here 2 * scale."""
    split = Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1, 1]))
    logits = scale * torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [1.00005, 1.0]])
    assert verify(logits + 1e-4 * scale, logits, split, 0.75, "it") == pytest.approx(1e-4 * scale, rel=0.01)
    for wrong in (logits + 4e-4 * scale, logits * math.nan, logits.flip(1)):
        with pytest.raises(
            ExportRefused,
            match=r"it must match the measured network within 0\.0001 of its largest logit, which is .*, but differs",
        ):
            verify(wrong, logits, split, 0.75, "it")
    with pytest.raises(ExportRefused, match=r"it must predict the same as .* for every image, but does not for 1 of 4"):
        verify(torch.cat([logits[:3], logits[3:].flip(1)]), logits, split, 0.75, "it")
    with pytest.raises(ExportRefused, match=r"it must have the measured accuracy 1\.0, but has 0\.75"):
        verify(logits, logits, split, 1.0, "it")


def test_export_is_one_call_in_python(finished: Finished, tmp_path: Path) -> None:
    entry = select(finished.study.front(), {"parameters": ("max", 10_000.0)})
    with pytest.raises(BadInput, match="`--format` must be a known format"):
        export(finished.study, entry, tmp_path / "out", ["tflite"])
    with pytest.raises(ExportRefused, match="must have the measured accuracy"):
        export(finished.study, replace(entry, measurements={**entry.measurements, "accuracy": 0.999}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
