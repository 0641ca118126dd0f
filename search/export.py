"""Export: a student as a file that a device can run, proved to be the one that was measured, with a card.

The network takes images (B, C, H, W) float32 in [0, 1] and returns logits (B, classes); normalisation is inside. So is
the averaging of a BatchEnsemble's members: softmax of these logits is the mean of their probabilities.
"""

import hashlib
import io
import json
import logging
import math
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from search.errors import ExportRefused
from search.front import Entry
from search.signals import signals_wait
from search.study import Study
from spaces import BadInput
from spaces.errors import known
from trainers.computing import computing
from trainers.data import pixels
from trainers.data.dataset import Dataset, Split
from trainers.files import json_text, write_together
from trainers.measure import EVALUATION_BATCH, fitted_temperature, measure, predictions, quality
from trainers.metrics import METRICS
from trainers.store import load_student
from trainers.task import key_of

# before ONNX Runtime is imported: it then leaves a device id in the user's home and tells its maker what it is used for
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TOLERANCE = 1e-4
"""Largest difference between a logit of the exported and of the measured network, as a share of the largest logit:
float rounds large numbers more coarsely."""


_NONE: Mapping[str, str] = MappingProxyType({})


def export_onnx(network: nn.Module, example: torch.Tensor, metadata: Mapping[str, str] = _NONE) -> bytes:
    """`network` as ONNX with a free batch size; example: (B, C, H, W) with B > 1; `metadata` become the model's own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own dependencies
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                external_data=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())


def run_onnx(content: bytes, images: torch.Tensor) -> torch.Tensor:
    """Logits (N, classes) of images (N, C, H, W) uint8 by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    parts = [
        session.run(["logits"], {"images": pixels(part).numpy()})[0] for part in torch.split(images, EVALUATION_BATCH)
    ]
    return torch.from_numpy(np.concatenate(parts))


def export_pt2(network: nn.Module, example: torch.Tensor, metadata: Mapping[str, str] = _NONE) -> bytes:
    """`network` as a `torch.export` archive with a free batch size; example: (B, C, H, W) with B > 1; `metadata` become
    extra files of the archive."""
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files=dict(metadata))
    return archive.getvalue()


def run_pt2(content: bytes, images: torch.Tensor) -> torch.Tensor:
    """Logits (N, classes) of images (N, C, H, W) uint8 by the archive alone, without our classes."""
    module = torch.export.load(io.BytesIO(content)).module()
    with torch.no_grad():
        return torch.cat([module(pixels(part)) for part in torch.split(images, EVALUATION_BATCH)])


Writer = Callable[[nn.Module, torch.Tensor, Mapping[str, str]], bytes]
Runner = Callable[[bytes, torch.Tensor], torch.Tensor]
FORMATS: Mapping[str, tuple[Writer, Runner]] = MappingProxyType(
    {"onnx": (export_onnx, run_onnx), "pt2": (export_pt2, run_pt2)}
)
"""How each format is written and run, by the file's ending."""


def metadata_of(data: Dataset) -> dict[str, str]:
    """What an exported file has inside of it, so that its numbers can be read without the card."""
    return {
        "class_names": json_text(data.class_names),
        "image_shape": json.dumps(data.image_shape),
        "image_colour": data.colour,
        "image_preparation": data.preparation,
    }


def verify(found: torch.Tensor, expected: torch.Tensor, split: Split, accuracy: float, what: str) -> float:
    """The largest difference between logits (N, classes) of the exported and of the measured network.

    Raises:
        ExportRefused: it is above TOLERANCE of the largest logit, an image is predicted otherwise, or the accuracy on
            the split is not the recorded one.
    """
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * largest:
        raise ExportRefused(
            f"{what} must compute the measured network within {TOLERANCE:g} of its largest logit, which is "
            f"{largest:.4g}, but differs by {difference:.3g}"
        )
    if others := int((found.argmax(1) != expected.argmax(1)).sum()):
        raise ExportRefused(
            f"{what} must predict for every image what the measured network does, but does not for {others} of "
            f"{len(found)}"
        )
    exported = quality(found, split.labels)["accuracy"]
    if exported != accuracy:
        raise ExportRefused(f"{what} must have the measured accuracy {accuracy}, but has {exported}")
    return difference


def export(study: Study, entry: Entry, folder: Path, formats: Sequence[str] = ("onnx",)) -> list[Path]:
    """Write a student in the given formats, and `card.json`; all of it or nothing.

    The test split is read here, once, for the card.

    Args:
        study: where the student is from.
        entry: the student.
        folder: where the files go.
        formats: names in FORMATS.

    Raises:
        BadInput: an unknown format, or the data were changed.
        ExportRefused: the student's files, or an exported one, do not compute what was measured; or the folder cannot
            be written into. What was in it stays as it was.
    """
    for name in formats:
        if name not in FORMATS:
            raise BadInput(f"`--format` must be a known format, but got {name!r}; {known(FORMATS, name)}")
    assert entry.folder is not None
    source = entry.folder
    study.files.check_student(entry)
    network = load_student(source)
    data = study.file.task.load_data()
    study.files.check_data(key_of(study.file.task, data), study.file.task.root)
    with computing(study.file.search.cpus):  # as it was measured
        measured = measure(network, data.validation)
        expected = predictions(network, data.validation)
        temperature = fitted_temperature(expected, data.validation.labels)
        test = measure(network, data.test, temperature=temperature)
    for name in ("accuracy", "parameters", "nll"):
        recorded = entry.measurements[name]
        # nll is a sum over logits, which another machine may round differently; the others are counts
        if not math.isclose(measured[name], recorded, rel_tol=TOLERANCE if name == "nll" else 0.0):
            raise ExportRefused(
                f"the files of {entry.called} must have the measured {name} {recorded}, "
                f"but have {measured[name]}; were they changed?"
            )
    made: dict[str, dict[str, Any]] = {}
    contents: dict[str, bytes] = {}
    for name in formats:
        write, run = FORMATS[name]
        file = f"{study.name}-{entry.trial}.{name}"
        content = contents[file] = write(network, pixels(data.validation.images[:2]), metadata_of(data))
        found = run(content, data.validation.images)
        difference = verify(found, expected, data.validation, entry.measurements["accuracy"], file)
        made[file] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content),
            "largest_logit_difference": difference,
            "largest_logit": float(expected.abs().max()),
        }
    card = {
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
        "temperature": temperature,
        "test": {name: value for name, value in test.items() if METRICS[name].scale == "linear"},
        "teacher_validation": study.files.task()["teacher"],
        "files": made,
        "student": {name: entry.files[name] for name in ("student.json", "student.safetensors")},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("dux-search", "torch", "onnx", "onnxruntime")},
        },
    }
    contents["card.json"] = json_text(card, indent=1).encode()
    try:
        with signals_wait():
            write_together(folder, contents)
    except OSError as error:
        raise ExportRefused(
            "all files of an export are written or none, but "
            f"{error.filename or folder} cannot be ({error.strerror}); name another folder with `--out`"
        ) from None
    return [folder / name for name in contents]
