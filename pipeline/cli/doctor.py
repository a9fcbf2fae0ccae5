"""`pivotune doctor`: what this machine and its Python have for a run, and what is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click

from .options import json_option, print_json

# Packages that are not always installed: what needs them, and the extra of Pivotune that installs them.
NEEDED_BY = {
    "bitsandbytes": ("optimizer adamw8bit, weights in nf4", "bitsandbytes"),
    "prodigyopt": ("optimizer prodigy", "optimizers"),
    "prodigy-plus-schedule-free": ("schedule-free prodigy", "optimizers"),
    "pytorch-optimizer": ("optimizers lion and came, schedule-free adamw", "optimizers"),
    "torchvision": ("Anima, Stable Cascade", "anima"),
    "gguf": ("denoisers in GGUF files", "gguf"),
    "pillow-heif": ("HEIC photos", "heic"),
    "pillow-jxl-plugin": ("JPEG XL images", "jxl"),
    "pyarrow": ("captions in Parquet", "parquet"),
    "tensorboard": ("curves in TensorBoard", "track"),
}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, devices, optional packages and free disk space: what a run finds here.

    Where no GPU is used, the line of the device says why and what to do.
    """
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    from ..text import printable
    from ..versions import version_lines

    lines = [f"device: {facts['device']}", *([facts["why_no_gpu"]] if facts["why_no_gpu"] else [])]
    lines += [f"  {name}: {gib} GiB of memory" for name, gib in facts["gpus"].items()]
    lines += ["", *version_lines(), ""]
    for name, row in facts["optional"].items():
        state = row["version"] or f"not installed: pip install 'pivotune[{row['extra']}]'"
        lines.append(f"{name:26}  {state} (for {row['for']})")
    lines += ["", f"cache: {facts['cache']}, {facts['cache_free_gib']} GiB free"]
    click.echo(printable(lines[0]))
    for line in lines[1:]:
        click.echo(printable(line))


def _facts() -> dict[str, Any]:
    import torch

    from ..device import pick_device
    from ..files import user_cache
    from ..versions import package_version

    device = pick_device("auto")
    gpus = {}
    if device.type == "cuda":
        about = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        gpus = {f"cuda:{index} {one.name}": round(one.total_memory / 2**30, 1) for index, one in enumerate(about)}
    cache = user_cache()
    there = next(folder for folder in (cache, *cache.parents, Path()) if folder.is_dir())
    return {
        "device": device.type,
        "why_no_gpu": why_no_gpu() if device.type == "cpu" else "",
        "gpus": gpus,
        "optional": {
            name: {"version": package_version(name), "for": use, "extra": extra}
            for name, (use, extra) in NEEDED_BY.items()
        },
        "cache": str(cache),
        "cache_free_gib": round(shutil.disk_usage(there).free / 2**30, 1),
    }


def why_no_gpu() -> str:
    """Why torch finds no accelerator, and what to do; for a machine on which it finds none."""
    import torch

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver = shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None and torch.version.hip is None:
        found = "a driver of NVIDIA is installed; " if driver else ""
        return (
            f"no GPU is used: this torch ({torch.__version__}) is built for the CPU; {found}see pytorch.org for others"
        )
    if hidden in ("", "-1"):
        return f"no GPU is used: CUDA_VISIBLE_DEVICES={hidden!r} hides all of them; unset it"
    if torch.version.cuda is not None and not driver:
        return "no GPU is used: nvidia-smi is not found; install a driver of NVIDIA if there is a GPU of theirs"
    return f"no GPU is used: torch ({torch.__version__}) finds none; compare its version with that of the driver"
