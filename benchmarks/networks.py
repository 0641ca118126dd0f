"""Networks of torchvision and timm, cut by Dux as they are; writes docs/networks.md.

    python benchmarks/networks.py             # within 20 minutes on one core; continues where it was interrupted
    python benchmarks/networks.py --quick     # the two smallest: does everything work? writes no document
    python benchmarks/networks.py --table     # only writes the document, from existing results

Each is a teacher with random weights, trained for a few steps, for small images. A student starts as it at half its
width, is trained for an epoch, saved, loaded, and exported to ONNX, all by what `dux search` and `dux export` call.
"""

import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import ROOT, Line, arguments, hardware, read, run_all

from search.export import metadata_of, verify
from search.formats import DEFAULT
from spaces import Recipe
from trainers import Knowledge, Task, TaskSpec, TeacherSpec, load_student, run_trial, save_student
from trainers.data import pixels
from trainers.data.dataset import Dataset, Split
from trainers.files import scratch_folder
from trainers.measure import batch_size, measure, predictions
from trainers.spectral import cut, mask, plan, spectralize, trace

DOCUMENT = ROOT / "docs" / "networks.md"
WIDTH = 0.5
TRAINED = {"epochs": 5, "batch_size": 16, "learning_rate": 0.01}
"""How teachers are trained: batch norms that have seen no images leave some networks so ill-conditioned that double
precision gives other logits."""
COLUMNS = (
    *("network", "side", "parameters", "units", "channels in them", "whole"),
    *("parameters left", "cut", "reloaded", "ONNX"),
)


@dataclass(frozen=True)
class Setting:
    """A network, and what it is built with."""

    network: str
    side: int = 32
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def called(self) -> str:
        """As the table has it."""
        given = ", ".join(f"{key} {value}" for key, value in self.arguments.items())
        return f"`{self.network}`{f' ({given})' if given else ''}"


SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
NETWORKS = (
    Setting("torchvision:squeezenet1_1"),
    Setting("torchvision:shufflenet_v2_x1_0"),
    Setting("torchvision:resnet18"),
    Setting("torchvision:mobilenet_v2"),
    Setting("torchvision:mobilenet_v3_small"),
    Setting("torchvision:efficientnet_b0"),
    Setting("torchvision:regnet_y_400mf"),
    Setting("torchvision:googlenet"),
    Setting("torchvision:densenet121"),
    Setting("torchvision:convnext_tiny"),
    Setting("torchvision:vit_b_16", arguments={"image_size": 32}),
    Setting("timm:mobilenetv3_small_050"),
    Setting("timm:efficientnet_lite0"),
    Setting("timm:vit_tiny_patch16_224", arguments=SMALL_VIT),
    Setting("timm:resnetv2_50"),
    Setting("timm:convnext_pico"),
    Setting("timm:mixer_s32_224", arguments={"img_size": 64}, side=64),
    Setting("timm:ghostnet_050"),
    Setting("timm:repvgg_a0"),
    Setting("torchvision:vgg11_bn"),
    Setting("torchvision:swin_t"),
    Setting("torchvision:maxvit_t", side=224),
)


def clouds(side: int) -> Dataset:
    """Smooth random images (3, side, side), of each class by turns: of plain noise, all averages are alike."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        small = torch.rand(count, 3, 4, 4, generator=generator)
        images = F.interpolate(small, (side, side), mode="bilinear", align_corners=True)
        return Split((255 * images).byte(), torch.arange(count) % 3)

    return Dataset("clouds", tuple("abc"), split(48), split(24), split(24))


def measured(setting: Setting) -> Line:
    """What of the network can be cut, and whether a student of it is the same everywhere; an error is a line, too."""
    began = time.monotonic()
    line: Line = {"key": setting.called, "side": setting.side}
    try:
        with scratch_folder() as folder:
            line |= _measured(setting, folder)
    except Exception as error:
        line["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return {**line, "seconds": time.monotonic() - began}


def _measured(setting: Setting, folder: Path) -> Line:
    spec = TaskSpec(
        augment="none",
        teacher=TeacherSpec.model_validate({"network": setting.network, "arguments": setting.arguments, **TRAINED}),
    )
    data = clouds(setting.side)
    task = Task.load(spec, folder, data=data)
    shape, teacher = data.image_shape, task.teacher
    traced = trace(spectralize(teacher, keep=teacher.heads), shape)
    planned = plan(traced, 1.0 - WIDTH, floor=0.0, scope="layer")
    images = pixels(data.validation.images)
    with torch.no_grad():
        smaller, masked = cut(traced.network, planned)(images), mask(traced.network, planned)(images)
    inner = [name for name in traced.layers if name not in traced.heads]
    channels = {name: int(traced.network.get_submodule(name).weight.shape[0]) for name in inner}
    units = {name: sum(len(unit.channels_of(name)) for unit in traced.units) for name in inner}
    recipe = {
        "student.start": "teacher",
        "student.width": WIDTH,
        "training.epochs": 1,
        "training.batch_size": 16,
        "training.learning_rate": 1e-3,
    }
    result = run_trial(Recipe.from_flat(recipe), task, Knowledge(task))
    save_student(folder / "trial", result.files(task))
    student = load_student(folder / "trial")
    same = measure(student, data.validation, ensemble_nlls=task.curve) == result.measurements
    expected = predictions(student, data.validation)
    content = DEFAULT.write(student, pixels(data.validation.images[:2]), metadata_of(data))
    exported = DEFAULT.run(content, data.validation.images, batch_size(student, shape))
    difference = verify(exported, expected, data.validation, result.measurements["accuracy"], setting.called)
    return {
        "units": planned.units,
        "channels": sum(channels.values()),
        "cuttable": sum(units.values()),
        "whole": Counter(_short(traced.whole.get(name, "")) for name in inner if units[name] < channels[name]),
        "cut_difference": float((smaller - masked).abs().max() / masked.abs().max()),
        "reloaded": same,
        "export_difference": difference / float(expected.abs().max()),
        "parameters": task.teacher_measurements["parameters"],
        "share": result.measurements["parameters"] / task.teacher_measurements["parameters"],
    }


def _short(why: str) -> str:
    """A reason without the places and the sizes that it names."""
    words = why.partition(" (")[0].partition(":")[0].partition(";")[0]
    return re.sub(r"\d+", "n", words) or "are coupled to such"


def document(path: Path) -> str:
    """The table, in Markdown."""
    results = read(path, "key")
    lines = [results[setting.called] for setting in NETWORKS if setting.called in results]
    missing = [setting.called for setting in NETWORKS if setting.called not in results]
    rows = []
    for line in lines:
        start = f"| {line['key']} | {line['side']} |"
        if "error" in line:
            rows.append(f"{start} does not work: {line['error']} | | | | | | | |")
            continue
        whole = "; ".join(f"{count} {why}" for why, count in Counter(line["whole"]).most_common()) or "none"
        rows.append(
            f"{start} {line['parameters']:,.0f} | {line['units']:,} | {line['cuttable'] / line['channels']:.0%} "
            f"| {whole} | {line['share']:.0%} | {line['cut_difference']:.0e} | "
            f"{'yes' if line['reloaded'] else 'no'} | {line['export_difference']:.0e} |"
        )
    minutes = sum(line["seconds"] for line in lines) / 60
    works = [line for line in lines if "error" not in line]
    return "\n".join(
        [
            "# Networks that Dux did not write",
            "",
            "Written by `python benchmarks/networks.py`. Random weights, trained for "
            f"{TRAINED['epochs']} epochs of {len(clouds(4).train)} random images; no change to any class.",
            "",
            "- units: what can be cut, channels that are coupled counted once; then how many of the channels of all "
            "layers but the last are in them.",
            "- whole: of how many layers not all channels can be cut, and why: their channels ...",
            f"- parameters left: of a student that starts as the network with `student.width` {WIDTH:g}.",
            "- cut: largest difference between logits of the cut network and of the whole one with the same units "
            "masked, as a share of the largest logit. Reloaded: whether a student that was trained, saved and loaded "
            "measures the same. ONNX: largest difference between its logits and ONNX Runtime's, likewise a share.",
            f"- {len(works)} of {len(lines)} work from end to end, in {minutes:.0f} min.",
            f"- {hardware(lines)}, one thread.",
            *([f"- Not measured: {', '.join(missing)}."] if missing else []),
            "",
            f"| {' | '.join(COLUMNS)} |",
            f"|{' --- |' * len(COLUMNS)}",
            *rows,
            "",
        ]
    )


def _one_thread() -> None:
    torch.set_num_threads(1)


def main() -> None:
    """The command."""
    given = arguments("Networks of torchvision and timm, cut by Dux as they are.")
    path = given.home / f"networks{'_quick' if given.quick else ''}.jsonl"
    if not given.table:
        done = read(path, "key")
        left = [setting for setting in NETWORKS[: 2 if given.quick else None] if setting.called not in done]
        run_all(left, measured, path, given.processes, shown=lambda line: str(line["key"]), load=_one_thread)
    text = document(path)
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
