"""Devices by their names: what they can compute at best, and the project's targets for two of them.

Peaks are of dense matrix products as PyTorch runs them by default: bf16 with sums in float32, fp32 without
TF32. They are the makers' data sheets but for the H200's bf16, which was measured (the data sheet has 989): nothing can
use more. A CPU has none here: what it can do depends on its clock of the moment.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal, final

import torch

Precision = Literal["fp32", "bf16", "fp16"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One kind of device."""

    name: str
    pattern: str
    """Of the names under which it goes, a regular expression."""
    bf16: float
    """FLOP/s at best, in fp16 too; where they have no hardware of their own that of fp32."""
    fp32: float
    target: tuple[int, int] | None = None
    """The project's target: images/s in training, from and to."""

    def peak(self, precision: Precision) -> float:
        """FLOP/s at best."""
        return self.fp32 if precision == "fp32" else self.bf16


MACHINES = (
    Machine(name="H200", pattern=r"H200", bf16=790e12, fp32=67e12),
    Machine(name="H100 PCIe", pattern=r"H100 PCIe", bf16=756e12, fp32=51e12),
    Machine(name="H100 NVL", pattern=r"H100 NVL", bf16=835e12, fp32=60e12),
    Machine(name="H100", pattern=r"H100", bf16=989e12, fp32=67e12),
    Machine(name="A100", pattern=r"A100", bf16=312e12, fp32=19.5e12, target=(800, 1000)),
    Machine(name="L40S", pattern=r"L40S", bf16=362e12, fp32=91.6e12),
    Machine(name="L4", pattern=r"L4", bf16=121e12, fp32=30.3e12),
    Machine(name="A10", pattern=r"A10", bf16=125e12, fp32=31.2e12),
    Machine(name="RTX 4090", pattern=r"RTX 4090", bf16=165e12, fp32=82.6e12),
    Machine(name="RTX 3090", pattern=r"RTX 3090", bf16=71e12, fp32=35.6e12),
    Machine(name="M1 Max", pattern=r"M1 Max", bf16=10.4e12, fp32=10.4e12, target=(150, 200)),
)
"""The first whose pattern is a word of the name is meant."""


TARGETS_ARE = (
    "The project's targets are images/s in training that it wants of an M1 Max and of an A100. They were set before "
    "anything was measured, for no model in particular."
)
_SHORTEST_WORD = 4
"""Letters of a name that means the device however it is written; l4 and a10 may mean much else."""


def machines_named(text: str) -> list[Machine]:
    """The known devices that a text speaks of, as "an A100", "imagenet100-m1max" or "2x rtx4090"."""

    def is_named(machine: Machine) -> bool:
        words = machine.name.replace(" ", "[ _-]?")
        case = re.IGNORECASE if len(machine.name) >= _SHORTEST_WORD else 0
        return re.search(rf"(?<![A-Za-z0-9]){words}(?![A-Za-z0-9])", text, case) is not None

    return [machine for machine in MACHINES if is_named(machine)]


def machine_called(name: str) -> Machine | None:
    """The known device that a name such as "NVIDIA A100-SXM4-80GB" means, None where it is unknown."""
    return next((machine for machine in MACHINES if re.search(rf"\b{machine.pattern}\b", name)), None)


def machine_of(device: torch.device) -> Machine | None:
    """The same of a device of this computer; None for every CPU."""
    return machine_called(device_name(device))


def device_name(device: torch.device) -> str:
    """As its maker calls it; "cpu" for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps" and sys.platform == "darwin":
        answer = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() or device.type
    return device.type


def images_per_s_at_peak(device: torch.device, precision: Precision, flops_per_image: int) -> float | None:
    """Images/s if every FLOP that the device has went into the model; None where its peak is unknown."""
    machine = machine_of(device)
    return machine.peak(precision) / flops_per_image if machine else None
