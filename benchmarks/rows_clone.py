"""A bundle beside a plain copy of its LoRA, on a file system that lets files share blocks (XFS in an image)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import Row, child, ratios
from rows_converters import PIVOTUNE, make_lora, make_words

ROUNDS = 7
MEGABYTES = 1600


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, _xfs(Path(folder)) as place:
        if place is None:
            print("no row for clones: mkfs.xfs and the right to mount are wanted", file=sys.stderr)
            return []
        lora, words = make_lora(place / "lora.safetensors", MEGABYTES), make_words(place / "words", 100)
        copy, ours = place / "copy.safetensors", place / "ours.safetensors"
        seconds: dict[str, list[float]] = {"copy": [], "ours": []}
        for _ in range(ROUNDS):
            seconds["copy"].append(child(["cp", "--reflink=never", str(lora), str(copy)]).wall)
            copy.unlink()
            bundle = [*PIVOTUNE, "bundle", str(lora), str(words), "--out", str(ours)]
            seconds["ours"].append(child(bundle).wall)
            ours.unlink()
    found = ratios(seconds["ours"], seconds["copy"])
    return [
        Row(f"bundle, {MEGABYTES} MB, 100 words, where files can share blocks: wall time", "<= 0.2 of cp", 0.2, found)
    ]


@contextmanager
def _xfs(folder: Path) -> Iterator[Path | None]:
    """A new file system in a folder, or None where there is no right to make one."""
    image, place = folder / "image", folder / "xfs"
    place.mkdir()
    if shutil.which("mkfs.xfs") is None:
        yield None
        return
    with open(image, "wb") as file:
        file.truncate((2 * MEGABYTES + 600) << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
