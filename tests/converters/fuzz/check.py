"""What must be true of any file whatever, sound or damaged."""

import json
import os
import random
import shutil
from pathlib import Path

from fuzz.guard import Violation

from pivotune.converters import safetensors_file
from pivotune.converters.adding import bundle
from pivotune.converters.atomic import batch
from pivotune.converters.dialects import DIALECTS
from pivotune.converters.embeddings import ConvertOptions
from pivotune.converters.errors import ConvertError
from pivotune.converters.families import all_families
from pivotune.converters.inspection import inspect
from pivotune.converters.operations import merge, retarget, unbundle
from pivotune.converters.programs import programs
from pivotune.converters.read import identify
from pivotune.converters.renaming import rename
from pivotune.converters.tensor import nbytes

MAX_MESSAGE = 2100  # without the path


class Checker:
    """Runs cases in a folder of its own, which holds `in` and `out`."""

    def __init__(self, folder, guard, partners):
        self.folder, self.guard, self.partners = Path(folder).absolute(), guard, partners
        self.inputs, self.outputs = self.folder / "in", self.folder / "out"
        self.inputs.mkdir()
        self.text = str(self.folder)
        self.files = {}

    def run(self, case):
        """`refused`, `read` or `written`. Raises Violation, Hang, or whatever the code under test lets out."""
        path = self.inputs / case.name
        descriptor = self.files.get(case.name)
        if descriptor is None:  # kept open: opening takes longer than most cases
            descriptor = self.files[case.name] = os.open(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(descriptor, case.data, 0)
        os.ftruncate(descriptor, len(case.data))
        self.wrote = False
        try:
            with self.guard.watch(self.text):
                return self._outcome(path, random.Random(case.index))
        finally:
            if self.wrote:
                shutil.rmtree(self.outputs, ignore_errors=True)

    def _outcome(self, path, rng):
        found, pick = self._asked(path, identify, path), rng.random()
        if pick < 0.04:
            text = self._asked(path, inspect, path)
            if text is not None:
                json.dumps(text, allow_nan=False)
        if found is None:
            return "refused"
        sound(found.stored.tensors)
        texts(found.stored.metadata)
        for embedding in found.contents.embeddings:
            texts({"name": embedding.name, **embedding.metadata})
            sound(embedding.vectors)
        return "written" if pick > 0.88 and self._written(path, found, rng) else "read"

    def _asked(self, path, function, *args):
        """The result; None for a ConvertError, whose one line is fit for any terminal."""
        try:
            return function(*args)
        except ConvertError as error:
            line(str(error), self.text)
            return None

    def _written(self, path, found, rng):
        options = ConvertOptions(
            family=rng.choice((None, *all_families())),
            name=rng.choice((None, None, "cat", "../up", "a.b")),
            replace=rng.random() < 0.5,
            drop_outputs=rng.random() < 0.5,
            dialect=rng.choice((None, None, *DIALECTS)),
        )
        targets = rng.sample(list(programs()), k=rng.choice((0, 1, 1, 2)))
        out = self.outputs / "out.safetensors"
        if found.contents.rest:
            jobs = [
                lambda files: unbundle(files, path, self.outputs, targets, options),
                lambda files: bundle(files, path, [self.partners["embedding"]], out, targets, options),
            ]
        else:
            jobs = [
                lambda files: retarget(files, path, self.outputs, targets, options),
                lambda files: bundle(files, self.partners["lora"], [path], out, targets, options),
            ]
        jobs += [
            lambda files: rename(files, path, rng.choice(("cat", "x=y", "", "\n")), out),
            lambda files: merge(files, [path, rng.choice(list(self.partners.values()))], out, options),
        ]
        self.wrote = True
        return self._batch(path, rng.choice(jobs))

    def _batch(self, path, job):
        def whole():
            with batch() as files:
                return job(files)

        written = self._asked(path, whole)
        left = {Path(root, name) for root, _, names in os.walk(self.outputs) for name in names}
        if written is None:
            if left or self.outputs.exists():
                raise Violation(f"left behind by a command that failed: {left}")
            return False
        if {item.path for item in written} != left or len(written) != len(left):
            raise Violation(f"{len(written)} files were reported as written: {written}; there are {left}")
        for file in left:
            if file.suffix == ".pt":  # --dialect a1111
                for embedding in identify(file).contents.embeddings:
                    sound(embedding.vectors)
                continue
            tensors, metadata = safetensors_file.read(file)
            sound(tensors)
            texts(metadata)
        return True


def sound(tensors):
    """Raises Violation unless names are text, shapes are sizes, and there are as many bytes as they say."""
    for name, tensor in tensors.items():
        texts({"name": name})
        if not all(type(size) is int and size >= 0 for size in tensor.shape):
            raise Violation(f"shape {tensor.shape}")
        size = nbytes(tensor.dtype, tensor.shape)
        if len(tensor.stored) != size or (size < 1 << 20 and len(tensor.data) != size):
            raise Violation(f"{tensor} has {len(tensor.data)} bytes")


def texts(mapping):
    """Raises Violation unless all of it is text that can be written in a file."""
    for item in mapping.items():
        for text in item:
            if type(text) is not str:
                raise Violation(f"{text!r:.80} is no text")


def line(message, folder):
    """Raises Violation unless a message is one line, not long, and moves no cursor."""
    text = message.replace(folder, "")
    if len(text) > MAX_MESSAGE or not message.isprintable():
        raise Violation(f"a message of {len(text)} characters: {text[:300]!r}")
