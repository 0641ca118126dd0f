"""The formats of exported students: one row each, with how it is written and run, and how it is documented.

Importing this needs no torch, so that the command line can name the formats at once.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from search.errors import ExportRefused

if TYPE_CHECKING:
    import torch
    import torch.export
    from torch import nn


@dataclass(frozen=True)
class Format:
    """One format of a file that holds a network."""

    name: str
    """As in `--format`; also the extension of its files."""
    title: str
    runtime: str
    """What runs the file."""
    write: Callable[[nn.Module, torch.Tensor, Mapping[str, str]], bytes]
    """Writes a file that takes batches of any size, given a network, an example (B, C, H, W) with B > 1, and metadata
    to store in the file."""
    run: Callable[..., torch.Tensor]
    """Logits (N, classes) that the runtime computes from images (N, C, H, W) uint8, on the CPU; called with the content
    of the file, the images and, if not 512, how many to compute at a time."""
    metadata: str
    """Where a program finds the metadata."""
    packages: tuple[str, ...] = ()
    """Packages whose versions matter besides torch's."""


def _program(network: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """The operations of a network, for batches of any size.

    Raises:
        ExportRefused: its code needs the size of a batch.
    """
    import torch
    from torch.export import Dim, export

    try:
        return export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
    except torch._dynamo.exc.UserError:
        # `len(images)` is a plain number, unless Dynamo reads the code, which takes longer
        try:
            return export(network, (example,), dynamic_shapes=({0: Dim("batch")},), strict=True)
        except Exception as error:
            raise ExportRefused(
                "a network must be exported for batches of any size, but its code needs their size: "
                f"{' '.join(str(error).split())[:200]}; use `images.shape[0]`"
            ) from None


def _write_onnx(network: nn.Module, example: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    import torch

    _without_telemetry()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own dependencies
            program = torch.onnx.export(
                _program(network, example),
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


def _run_onnx(content: bytes, images: torch.Tensor, batch: int = 512) -> torch.Tensor:
    import numpy as np
    import torch

    from trainers.data import pixels

    _without_telemetry()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    parts = [session.run(["logits"], {"images": pixels(part).numpy()})[0] for part in torch.split(images, batch)]
    return torch.from_numpy(np.concatenate(parts))


def _without_telemetry() -> None:
    """Call before importing ONNX Runtime, which would otherwise leave a device id in the user's home and send usage
    data to its vendor."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _write_pt2(network: nn.Module, example: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    import torch

    archive = io.BytesIO()
    torch.export.save(_program(network, example), archive, extra_files=dict(metadata))
    return archive.getvalue()


def _run_pt2(content: bytes, images: torch.Tensor, batch: int = 512) -> torch.Tensor:
    """Runs the archive alone, without our classes."""
    import torch

    from trainers.data import pixels

    module = torch.export.load(io.BytesIO(content)).module()
    with torch.no_grad():
        return torch.cat([module(pixels(part)) for part in torch.split(images, batch)])


_ROWS = (
    Format(
        "onnx",
        "ONNX",
        "ONNX Runtime",
        _write_onnx,
        _run_onnx,
        "`session.get_modelmeta().custom_metadata_map`",
        ("onnx", "onnxruntime"),
    ),
    Format("pt2", "torch.export", "PyTorch", _write_pt2, _run_pt2, "extra files of `torch.export.load`"),
)

FORMATS: Mapping[str, Format] = MappingProxyType({row.name: row for row in _ROWS})

DEFAULT = _ROWS[0]
"""What `dux export` writes by default, and what `dux check` tries."""
