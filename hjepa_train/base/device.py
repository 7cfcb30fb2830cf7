"""Which device a run is on."""

import torch

from hjepa_shards.errors import InputError


def devices_here() -> list[str]:
    """Kinds of devices that torch can use on this machine, the fastest first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_there in there.items() if is_there]


def choose_device(name: str) -> torch.device:
    """`auto`: CUDA, else MPS, else the CPU. InputError where the one named is not here."""
    here = devices_here()
    if name not in (*here, "auto"):
        raise InputError(f"training.device: {name}: auto or one of {', '.join(here)} expected on this machine")
    return torch.device(here[0] if name == "auto" else name)
