"""Knowledge: what all trials of a study share of the teacher, so that nobody computes it twice.

A transfer method says what it needs (`trainers.transfer.Needs`); whether that comes from a cache or from a forward pass
is decided here. Outputs are cached where training images are not augmented, because then every image has one output for
good. What is computed once is kept in memory, and in a folder if there is one.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn

from trainers.computing import SoundConvolutions, computing
from trainers.data.dataset import pixels
from trainers.families import by_member, capture, combined
from trainers.files import Damaged, digest, read_hashed, write_hashed
from trainers.loop import Batch, batches
from trainers.seeding import seeded
from trainers.store import weights_bytes
from trainers.task import Task
from trainers.transfer import Needs, Stage, Taps, TeacherSignals

CACHE_BYTES = 2**30
"""A signal larger than this for the whole training split is computed batch by batch instead of kept."""
STAGE_BATCH = 128
COMPUTE_BATCH = 512


class Knowledge:
    """The teacher's outputs, features and factors on the training split of one task.

    Args:
        task: whose teacher it is.
        folder: where what is computed is kept, for other processes and other days; None keeps it in memory.
        arrays: what `arrays` of another process's knowledge returned; read-only memory is fine.
        say: told in a line of a file that was changed since it was written, and is computed anew.
    """

    def __init__(
        self,
        task: Task,
        folder: Path | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.task = task
        self._say = say
        self._computed_here: list[Path] = []
        self._folder = None if folder is None else folder / task.key
        self._arrays: dict[str, np.ndarray] = dict(arrays or {})
        self._stages: dict[str, nn.Module] = {}

    def prepare(self, needs: Needs) -> None:
        """Compute now what `needs` names, unless it is there: stages are trained, and what fits is cached.

        Raises:
            StageFailed: a stage did not learn what students need of it.
        """
        for name, stage in self._names(needs):
            if self._cached(name, stage) is None and stage is not None:
                self._stage(stage)

    def forget(self) -> None:
        """Delete what this process computed from the folder: nobody is to learn from it after all."""
        for path in self._computed_here:
            for name in (path.name, f"{path.name}.sha256", f".{path.name}.lock"):
                path.with_name(name).unlink(missing_ok=True)
        if self._folder is not None:
            with suppress(OSError):  # not there, or another study's knowledge is in it
                self._folder.rmdir()

    def arrays(self) -> dict[str, np.ndarray]:
        """All that is cached, the stages' weights included, for Ray's object store."""
        return dict(self._arrays)

    def signals(self, needs: Needs, batch: Batch, generator: torch.Generator) -> TeacherSignals:
        """The signals that `needs` names for one batch, detached, on the batch's device.

        Args:
            needs: of the method.
            batch: of training images.
            generator: of the CPU; perturbations come from it.
        """
        found: dict[str, Tensor] = {}
        names = self._names(needs)
        for name, stage in names:
            cache = self._cached(name, stage)
            if cache is not None:
                found[name] = torch.from_numpy(cache[batch.index.numpy()]).to(batch.images.device)
        if missing := [item for item in names if item[0] not in found]:
            found.update(self._computed(missing, batch.images))
        perturbed = None
        if needs.perturbation is not None:
            teacher = self.task.teacher.to(batch.images.device)
            perturbed = needs.perturbation.apply(batch.images, teacher.members, teacher.member, generator)
            found.update(self._computed([("members", None)], perturbed))
        return TeacherSignals(
            logits=found.get("logits"),
            maps=tuple(found[name] for name in self._taps("map", needs.maps)),
            before_relu=tuple(found[name] for name in self._taps("before_relu", needs.before_relu)),
            rows=batch.index.to(batch.images.device) if needs.rows else None,
            staged=None if needs.stage is None else found[needs.stage.key],
            members=found["members"].transpose(0, 1) if needs.members else None,
            perturbed=perturbed,
        )

    def _names(self, needs: Needs) -> list[tuple[str, Stage | None]]:
        names: list[tuple[str, Stage | None]] = [("logits", None)] if needs.logits else []
        names += [("members", None)] if needs.members and needs.perturbation is None else []
        names += [(name, None) for name in self._taps("map", needs.maps)]
        names += [(name, None) for name in self._taps("before_relu", needs.before_relu)]
        return names + ([(needs.stage.key, needs.stage)] if needs.stage is not None else [])

    def _taps(self, kind: str, taps: Taps) -> list[str]:
        """Names of the signals of these taps; one signal has one name, from whichever end its tap was counted."""
        count = len(self.task.teacher.taps)
        return [f"{kind}{tap % count}" for tap in (range(count) if taps == "all" else taps)]

    def _computed(self, names: list[tuple[str, Stage | None]], images: Tensor) -> dict[str, Tensor]:
        """The named signals of images (B, C, H, W) by a forward pass of the teacher."""
        teacher = self.task.teacher.to(images.device)
        with torch.no_grad():
            features = capture(teacher, images)
            found = {}
            for name, stage in names:
                if stage is not None:
                    found[name] = stage.apply(self._stage(stage).to(images.device), features.maps[stage.tap])
                elif name == "logits":
                    found[name] = combined(features.logits, teacher.members)
                elif name == "members":  # (B, M, classes), by row as all that is cached
                    found[name] = by_member(features.logits, teacher.members).transpose(0, 1)
                else:
                    kind = "map" if name.startswith("map") else "before_relu"
                    maps = features.maps if kind == "map" else features.before_relu
                    found[name] = maps[int(name.removeprefix(kind))]
        return found

    def _cached(self, name: str, stage: Stage | None) -> np.ndarray | None:
        """The signal of every training image, (N, ...), or None where it is not to be kept."""
        if name not in self._arrays and self._fits(name, stage):

            def compute() -> bytes:
                buffer = io.BytesIO()
                np.save(buffer, self._whole(name, stage))
                return buffer.getvalue()

            self._arrays[name] = np.load(io.BytesIO(self._once(f"{name}.npy", compute)))
        return self._arrays.get(name)

    def _fits(self, name: str, stage: Stage | None) -> bool:
        """Whether the signal is the same in every epoch and small enough to be kept for all training images."""
        images = self.task.data.train.images
        if self.task.spec.policy != "none":
            return False
        one = self._computed([(name, stage)], pixels(images[:2]))[name]
        return one[0].numel() * one.element_size() * len(images) <= CACHE_BYTES

    def _whole(self, name: str, stage: Stage | None) -> np.ndarray:
        """The signal of every training image, (N, ...), computed."""
        parts = torch.split(self.task.data.train.images, COMPUTE_BATCH)
        return np.concatenate([self._computed([(name, stage)], pixels(part))[name].numpy() for part in parts])

    def _stage(self, stage: Stage) -> nn.Module:
        """The trained module of a stage."""
        if stage.key not in self._stages:
            (tap,) = self._taps("map", (stage.tap,))
            maps = self._computed([(tap, None)], pixels(self.task.data.train.images[:2]))[tap]
            generator = torch.Generator().manual_seed(int(digest(self.task.spec.teacher.seed, stage.key)[:8], 16))
            with seeded(generator):
                module = stage.build((maps.shape[1], maps.shape[2], maps.shape[3]))

            def train() -> bytes:
                # many passes over the same maps: kept for them, and no longer, since students are not handed the maps
                whole = self._whole(tap, None) if self._fits(tap, None) else None
                with torch.enable_grad(), SoundConvolutions():
                    found = stage.train(module, lambda: self._passes(tap, whole, generator))
                if self._folder is not None:
                    self._computed_here.append(self._folder / f"{stage.key}.json")
                    write_hashed(self._computed_here[-1], json.dumps(found))
                return weights_bytes(module)

            filename = f"{stage.key}.safetensors"
            if filename not in self._arrays:
                self._arrays[filename] = np.frombuffer(self._once(filename, train), np.uint8)
            module.load_state_dict(safetensors.torch.load(self._arrays[filename].tobytes()))
            self._stages[stage.key] = module.eval().requires_grad_(False)
        return self._stages[stage.key]

    def _passes(self, tap: str, whole: np.ndarray | None, generator: torch.Generator) -> Iterator[Tensor]:
        """One shuffled pass over the teacher's maps (B, C, H, W) of the training split, out of `whole` if given."""
        data, policy = self.task.data.train, self.task.spec.policy
        for batch in batches(data, STAGE_BATCH, policy, generator, torch.device("cpu")):
            if whole is not None:
                yield torch.from_numpy(whole[batch.index.numpy()])
            else:
                yield self._computed([(tap, None)], batch.images)[tap]

    def _once(self, filename: str, compute: Callable[[], bytes]) -> bytes:
        """The content of a file of the folder, computed by one process while others wait for it."""
        if self._folder is None:
            with computing(self.task.spec.teacher.threads):
                return compute()
        path = self._folder / filename
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / f".{filename}.lock"):
            try:
                return read_hashed(path)
            except FileNotFoundError:
                pass
            except Damaged as error:
                self._say(f"{error}; it is computed anew (in {self._folder})")
            self._computed_here.append(path)
            with computing(self.task.spec.teacher.threads):
                content = compute()
            write_hashed(path, content)
        return content
