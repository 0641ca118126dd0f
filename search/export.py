"""Export: a student as a file that a device can run, proved to compute what was measured, with a card.

The network takes images (B, C, H, W) float32 in [0, 1] and returns logits (B, classes); normalisation is built in, and
so is the averaging of a BatchEnsemble's members: the softmax of these logits is the mean of their probabilities.
"""

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from search.errors import ExportRefused
from search.formats import DEFAULT, FORMATS
from search.fronts.front import Entry
from search.signals import signals_wait
from search.study import Study
from search.study_file import find_modules_in
from spaces import BadInput
from spaces.errors import known
from trainers.computing import computing
from trainers.data import pixels
from trainers.data.dataset import Dataset, Split
from trainers.data.splits import wilson
from trainers.files import json_text, write_together
from trainers.measure import all_quality, batch_size, measure, outputs, predictions, quality
from trainers.metrics import class_counts
from trainers.predictions import Predictions, fitted_temperature
from trainers.store import load_student
from trainers.task import key_of

TOLERANCE = 1e-4
"""Largest difference between a logit of the exported and of the measured network, as a fraction of the largest logit:
floats round large numbers more coarsely."""


def metadata_of(data: Dataset) -> dict[str, str]:
    """The metadata inside an exported file, so that its outputs can be interpreted without the card."""
    return {
        "class_names": json_text(data.class_names),
        "image_shape": json.dumps(data.image_shape),
        "image_colour": data.colour,
        "image_preparation": data.preparation,
    }


def verify(exported: torch.Tensor, expected: torch.Tensor, split: Split, accuracy: float, what: str) -> float:
    """The largest difference between logits (N, classes) of the exported and of the measured network.

    Raises:
        ExportRefused: it exceeds TOLERANCE of the largest logit, an image is predicted differently, or the accuracy on
            the split is not the recorded one.
    """
    difference, largest = float((exported - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * largest:
        raise ExportRefused(
            f"{what} must match the measured network within {TOLERANCE:g} of its largest logit, which is "
            f"{largest:.4g}, but differs by {difference:.3g}"
        )
    if others := int((exported.argmax(1) != expected.argmax(1)).sum()):
        raise ExportRefused(
            f"{what} must predict the same as the measured network for every image, but does not for {others} of "
            f"{len(exported)}"
        )
    reached = quality(exported, split.labels)["accuracy"]
    if reached != accuracy:
        raise ExportRefused(f"{what} must have the measured accuracy {accuracy}, but has {reached}")
    return difference


def export(study: Study, entry: Entry, folder: Path, formats: Sequence[str] = (DEFAULT.name,)) -> list[Path]:
    """Write a student in the given formats, and `card.json`: all files or none.

    The test split is read here, once, for the card.

    Args:
        study: the student's study.
        entry: the student.
        folder: where to write the files.
        formats: names in FORMATS.

    Raises:
        BadInput: an unknown format, or the data were changed.
        ExportRefused: the student's files, or an exported file, do not compute what was measured, or the folder cannot
            be written to. Its previous contents are left unchanged.
    """
    for name in formats:
        if name not in FORMATS:
            raise BadInput(f"`--format` must be a known format, but got {name!r}; {known(FORMATS, name)}")
    assert entry.folder is not None
    study.files.check_student(entry)
    if study.file.own_code:
        find_modules_in(Path())
    network = load_student(entry.folder)
    data = study.file.task.load_data(study.home)
    teacher = study.files.teacher_identity(study.file.task)
    study.files.check_data(key_of(study.file.task, data, teacher), study.file.task, teacher)
    with computing(study.file.search.cpus):  # as it was measured
        measured = measure(network, data.validation)
        expected = predictions(network, data.validation)
        temperature = fitted_temperature(expected, data.validation.labels)
        test = Predictions(outputs(network, data.test), data.test.labels, temperature=temperature)
    _check_measured(entry, measured)
    contents: dict[str, bytes] = {}
    made: dict[str, dict[str, Any]] = {}
    for name in formats:
        file = f"{study.name}-{entry.trial}.{name}"
        content = FORMATS[name].write(network, pixels(data.validation.images[:2]), metadata_of(data))
        logits = FORMATS[name].run(content, data.validation.images, batch_size(network, data.image_shape))
        difference = verify(logits, expected, data.validation, entry.measurements["accuracy"], file)
        contents[file] = content
        made[file] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content),
            "largest_logit_difference": difference,
            "largest_logit": float(expected.abs().max()),
        }
    said = _card(study, entry, data, made) | {"temperature": temperature, **_qualities(data, expected, test)}
    contents["card.json"] = json_text(said, indent=1).encode()
    try:
        with signals_wait():
            write_together(folder, contents)
    except OSError as error:
        raise ExportRefused(
            "either all files of an export are written or none, but "
            f"{error.filename or folder} cannot be written ({error.strerror}); name another folder with `--out`"
        ) from None
    return [folder / name for name in contents]


def _check_measured(entry: Entry, measured: Mapping[str, float]) -> None:
    for name in ("accuracy", "parameters", "nll"):
        recorded = entry.measurements[name]
        # another machine may round nll, a sum over logits, differently; the others are counts
        if not math.isclose(measured[name], recorded, rel_tol=TOLERANCE if name == "nll" else 0.0):
            raise ExportRefused(
                f"the files of {entry.called} must have the measured {name} {recorded}, "
                f"but have {measured[name]}; were they changed?"
            )


def _qualities(data: Dataset, validation: torch.Tensor, test: Predictions) -> dict[str, Any]:
    """The card's numbers that need predictions: of logits (N, classes) for the validation images, and for the test."""
    logits = {"validation": validation, "test": test.logits}
    return {
        "test": all_quality(test),
        "accuracy": {split: _accuracy(of, data.splits()[split], data.class_names) for split, of in logits.items()},
    }


def _accuracy(logits: torch.Tensor, split: Split, class_names: Sequence[str]) -> dict[str, Any]:
    """The accuracy of logits (N, classes) on a split, and on each class's images; None where there are none."""

    def share(right: float, images: float) -> dict[str, Any]:
        accuracy = right / images if images else None
        interval = None if accuracy is None else wilson(accuracy, int(images))
        return {"images": int(images), "accuracy": accuracy, "interval": interval}

    right, labelled, _ = (counts.tolist() for counts in class_counts(logits, split.labels))
    classes = zip(class_names, right, labelled, strict=True)
    return {
        **share(sum(right), len(split)),
        "classes": [{"name": name, **share(hits, images)} for name, hits, images in classes],
    }


def _card(study: Study, entry: Entry, data: Dataset, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What users of the student need to know, but for what was just measured."""
    packages = ("dux-search", "torch", *(package for row in FORMATS.values() for package in row.packages))
    return {
        "study": study.name,
        "trial": entry.trial,
        "curve_of": entry.curve_of,
        "mlflow_run_id": entry.run_id,
        "recipe": dict(entry.recipe),
        "input": {"name": "images", "shape": ["batch", *data.image_shape], "type": "float32", "range": [0.0, 1.0]},
        "output": {"name": "logits", "shape": ["batch", data.classes], "type": "float32"},
        "class_names": list(data.class_names),
        "images": {"colour": data.colour, "preparation": data.preparation},
        "validation": dict(entry.measurements),
        "chosen_from": {"students": len(study.front().entries), "validation_images": len(data.validation)},
        "teacher_validation": study.files.task()["teacher"],
        "files": files,
        "student": {name: entry.files[name] for name in ("student.json", "student.safetensors")},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
