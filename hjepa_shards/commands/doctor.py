"""What is here to decode, encode, read and train with, how fast it is, and what would make it faster.

Everything is measured on one built-in photograph and a temporary file, in a few seconds. Libraries are imported in
processes of their own: PyTorch takes seconds, and a broken one takes only its own process down. Processor time is
counted, not time on the wall, so a busy machine gives nearly the numbers of an idle one.
"""

import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from hjepa_shards.base import machine_limits
from hjepa_shards.base.machine_limits import Cores, Disk, Memory, OpenFiles, versions
from hjepa_shards.base.shown_text import size
from hjepa_shards.errors import InputError
from hjepa_shards.images.decode import bilinear, decode
from hjepa_shards.images.encode import EncodeSettings, encode, installed_encoder
from hjepa_shards.images.image_formats import Colour
from hjepa_shards.loader.png_batch import has_libdeflate
from hjepa_shards.sources.own.bundled import inside_sklearn

_DECODERS = {
    "simplejpeg": "import simplejpeg\ndecode = lambda data: simplejpeg.decode_jpeg(data, colorspace='RGB')",
    "cv2": "import cv2, numpy\ncv2.setNumThreads(0)\n"
    "decode = lambda data: cv2.imdecode(numpy.frombuffer(data, numpy.uint8), cv2.IMREAD_COLOR_RGB)",
    "PIL": "import io\nfrom PIL import Image\ndecode = lambda data: Image.open(io.BytesIO(data)).convert('RGB')",
    "turbojpeg": "import turbojpeg\nturbo = turbojpeg.TurboJPEG()\n"
    "decode = lambda data: turbo.decode(data, pixel_format=turbojpeg.TJPF_RGB)",
}
"""Module -> code that makes `decode`, a function of the bytes of a JPEG."""
_TITLES = {"cv2": "OpenCV", "PIL": "Pillow", "turbojpeg": "PyTurboJPEG"}
_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
facts = {"cuda build": torch.version.cuda, "cuda": cuda, "mps": torch.backends.mps.is_available(),
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []}
"""
_TORCHVISION = """
import torchvision.io
torch.set_num_threads(1)
decode = lambda data: torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8),
    torchvision.io.ImageReadMode.RGB)
"""
_MEASURED_S = 0.4
_MEASURE = f"""
import sys, time
data = sys.stdin.buffer.read()
for _ in range(3): decode(data)
count, started = 0, time.process_time()
while (spent := time.process_time() - started) < {_MEASURED_S}: decode(data); count += 1
rate = count / spent
"""
_BUILT = "simplejpeg, as built"
_COMPILED = ("images._resize", "loader._pread", "images._png", "images._jpeg")
"""Parts in C, each skipped where it could not be compiled."""
_PATIENCE_S = 30
"""For one library to be imported and measured."""

_FEW_FILES = 4096
_SLOW_DISK = 200e6
_LITTLE_FREE = 20e9
_LITTLE_TEMPORARY = 2e9
_LITTLE_MEMORY = 4e9
_NETWORKED = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "ceph", "afs")
_GPU_IMAGES_PER_S = 1_000
"""What a large GPU takes of a loader in training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast one library does one thing to a 500 x 375 JPEG."""

    name: str
    images_per_s: float | None
    """On one core; None where it could not be measured."""
    remark: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What to do, and why."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """All that was found."""

    versions: dict[str, str]
    decoders: tuple[Speed, ...]
    encoders: tuple[Speed, ...]
    """To shorter side 256, quality 90: what `build` does to photographs."""
    resizers: tuple[Speed, ...]
    """The photograph, shorter side 256, to 224 x 224: what a loader does after its decode."""
    not_compiled: tuple[str, ...]
    """Parts in C that are not here."""
    has_libdeflate: bool
    """Small PNGs are decoded with it."""
    cores: Cores
    memory: Memory
    open_files: OpenFiles
    shards: Disk
    """Where shards are or will be."""
    temporary: Disk
    stored_bytes: int
    """Of the photograph as `build` stores it."""
    gpus: tuple[str, ...]
    """As the driver names them."""
    torch: dict[str, Any]
    """What PyTorch sees; empty without it."""
    load: float
    """Processes that wanted a core, on average over the last minute."""
    advice: tuple[Advice, ...]


def examine(folder: Path) -> Examination:
    """Look at this machine and at the file system of `folder`. Takes 10 to 20 seconds. Raises nothing."""
    load = os.getloadavg()[0]  # before there is any of ours
    photo = _photo()
    torch = _ask_torch(photo)  # takes longest, and meanwhile the others are measured
    decoders = [_decoder(module, code, photo) for module, code in _DECODERS.items()]
    encoders, stored = _encoders(photo)
    decoders.insert(1, replace(_decoder("simplejpeg", _DECODERS["simplejpeg"], stored), name=_BUILT))
    found: dict[str, Any] = {
        "versions": versions(),
        "encoders": encoders,
        "resizers": _resizers(stored),
        "not_compiled": tuple(part for part in _COMPILED if importlib.util.find_spec(f"hjepa_shards.{part}") is None),
        "has_libdeflate": bool(has_libdeflate),
        "cores": machine_limits.cores(),
        "memory": machine_limits.memory(),
        "open_files": machine_limits.open_files(),
        "shards": machine_limits.measured(machine_limits.disk_of(folder)),
        "temporary": machine_limits.disk_of(Path(tempfile.gettempdir())),
        "gpus": _gpus(),
        "stored_bytes": len(stored),
        "load": load,
    }
    facts, torchvision = torch()
    examination = Examination(**found, decoders=(*decoders, torchvision), torch=facts, advice=())
    return replace(examination, advice=tuple(advise(examination)))


def advise(found: Examination) -> Iterator[Advice]:
    """What would make this machine faster, or keep a run on it from failing."""
    yield from _about_cores(found)
    yield from _about_libraries(found)
    yield from _about_disks(found)
    yield from _about_gpus(found)


def _about_cores(found: Examination) -> Iterator[Advice]:
    cores, usable = found.cores, found.cores.usable
    if cores.quota is not None and cores.quota < cores.allowed:
        yield Advice(
            what=f"set `data.threads: {max(1, round(cores.quota))}` and `--workers {max(1, round(cores.quota))}`",
            why=f"the control group grants the time of {cores.quota:g} cores; {cores.allowed} threads would wait",
        )
    elif cores.allowed < cores.machine:
        yield Advice(
            what="ask the scheduler for more cores, if the loader is what a run waits for",
            why=f"this process may use {cores.allowed} of {cores.machine}",
        )
    if found.load > usable + 1:
        yield Advice(
            what="measure again when the machine is idle",
            why=f"{found.load:.1f} processes wanted its {usable:g} cores in the last minute: speeds are too low",
        )
    rates = {speed.name: speed.images_per_s for speed in found.decoders}
    original, built = rates.get("simplejpeg"), rates.get(_BUILT)
    if original and built and original * usable < _GPU_IMAGES_PER_S:
        yield Advice(
            what="build photographs at the default shorter side of 256, not with `--pixels keep`",
            why=f"{usable:g} cores decode {_round(original * usable)} originals a second, {_round(built * usable)} "
            f"at 256; a large GPU trains on about {_GPU_IMAGES_PER_S:,}",
        )
    soft, hard = found.open_files.soft, found.open_files.hard
    if 0 <= soft < _FEW_FILES:
        target = 65536 if hard < 0 else min(hard, 65536)
        more = f"`ulimit -n {target}`" if target > soft else "ask the administrator for more open files (limits.conf)"
        yield Advice(
            what=f"{more} before a run",
            why=f"{soft:,} open files are allowed; each shard in use holds two, so a source of many shards opens and "
            "closes them all the time",
        )
    limit = found.memory.limit
    if limit is not None and limit < _LITTLE_MEMORY:
        yield Advice(
            what="set a smaller `data.order.window`, or ask for more memory",
            why=f"the control group grants {size(limit)}; `hjepa-shards plan` prints what the open windows take",
        )


def _about_libraries(found: Examination) -> Iterator[Advice]:
    for speed in found.decoders:
        if speed.name == "simplejpeg" and speed.images_per_s is None:
            yield Advice(what="pip install --force-reinstall simplejpeg", why=f"it decodes in training: {speed.remark}")
    if found.not_compiled:
        yield Advice(
            what="apt-get install gcc libc6-dev zlib1g-dev python3-dev, then install hjepa again",
            why=f"{', '.join(found.not_compiled)}: not compiled; the loader gives the same batches without, slower",
        )
    elif not found.has_libdeflate:
        yield Advice(
            what="install libdeflate (apt-get install libdeflate0, brew install libdeflate)",
            why="small PNGs, CIFAR say, are decoded by zlib, in twice the time",
        )
    if "pillow-simd" in found.versions:
        yield Advice(
            what="build with `--encoder pillow-simd`, or install Pillow instead",
            why="Pillow-SIMD is installed and writes other bytes than Pillow, so the other encoders refuse it",
        )


def _about_disks(found: Examination) -> Iterator[Advice]:
    shards, photo = found.shards, found.stored_bytes
    if shards.read_bytes_per_s is not None and shards.read_bytes_per_s < _SLOW_DISK:
        yield Advice(
            what=f"put shards on a faster disk than {shards.folder}",
            why=f"{size(shards.read_bytes_per_s)}/s are read past the memory cache: "
            f"{_round(shards.read_bytes_per_s / photo)} photographs of 256 pixels a second",
        )
    if shards.kind.startswith(_NETWORKED):
        yield Advice(
            what="copy the shards to a local disk before long runs",
            why=f"{shards.folder} is on {shards.kind}: samples are read one by one, and each waits for the network",
        )
    if shards.free_bytes < _LITTLE_FREE:
        yield Advice(
            what=f"make room on {shards.folder}",
            why=f"{size(shards.free_bytes)} are free; a million photographs of 256 pixels take {size(photo * 1e6)}",
        )
    if found.temporary.free_bytes < _LITTLE_TEMPORARY:
        yield Advice(
            what=f"make room on {found.temporary.folder}, or set TMPDIR",
            why=f"{size(found.temporary.free_bytes)} are free for temporary files; torch.compile alone takes more",
        )


def _about_gpus(found: Examination) -> Iterator[Advice]:
    torch = found.torch
    if "torch" not in found.versions:
        yield Advice(what='pip install "hjepa[train]"', why="without PyTorch, shards can be built but not trained on")
    elif "error" in torch:
        yield Advice(what="look at what `python -c 'import torch'` says", why=f"PyTorch: {torch['error']}")
    elif found.gpus and not torch["cuda"]:
        built = f"for CUDA {torch['cuda build']}" if torch["cuda build"] else "without CUDA"
        yield Advice(
            what="install a PyTorch that fits the driver (pytorch.org names the command)",
            why=f"the driver sees {len(found.gpus)}, PyTorch {found.versions['torch']}, built {built}, sees none",
        )
    elif not found.gpus and not torch["cuda"] and not torch["mps"]:
        yield Advice(
            what="begin with configs/quickstart.yaml or configs/cifar10_cpu.yaml",
            why="no GPU is here: a ViT-S at 224 pixels is out of a CPU's reach, the small ones take minutes",
        )


def _round(value: float) -> str:
    """Two digits that count."""
    return f"{float(f'{value:.2g}'):,.0f}"


def _photo() -> bytes:
    """A JPEG of 500 x 375 like ImageNet's originals: a photograph inside scikit-learn, or noise with as many bytes."""
    try:
        with Image.open(inside_sklearn("datasets/images/china.jpg")) as photo:
            image = photo.convert("RGB").crop((0, 0, photo.height * 4 // 3, photo.height))
    except InputError:  # the shard engine alone
        coarse = np.random.Generator(np.random.Philox(0)).integers(0, 256, (150, 200, 3), np.uint8)
        image = Image.fromarray(coarse)
    buffer = io.BytesIO()
    image.resize((500, 375), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    return buffer.getvalue()


def _decoder(module: str, code: str, photo: bytes) -> Speed:
    """Measured in a process of its own."""
    name = _TITLES.get(module, module)
    if importlib.util.find_spec(module) is None:
        return Speed(name=name, images_per_s=None, remark="not installed")
    output, error = _ask(code + _MEASURE + "print(rate)", photo)()
    return Speed(name=name, images_per_s=None if error else float(output), remark=error)


def _ask_torch(photo: bytes) -> Callable[[], tuple[dict[str, Any], Speed]]:
    """Begin to ask PyTorch what it sees and torchvision how fast it decodes; call the result for the answers."""
    missing = Speed(name="torchvision", images_per_s=None, remark="not installed")
    if importlib.util.find_spec("torch") is None:
        return lambda: ({}, missing)
    has_vision = importlib.util.find_spec("torchvision") is not None
    code = f"{_TORCHVISION}{_MEASURE}facts['torchvision'] = rate\n" if has_vision else ""
    answer = _ask(f"{_TORCH}{code}print(json.dumps(facts))", photo)

    def read() -> tuple[dict[str, Any], Speed]:
        output, error = answer()
        facts: dict[str, Any] = {"error": error} if error else json.loads(output)
        rate = facts.pop("torchvision", None)
        return facts, Speed(name="torchvision", images_per_s=rate, remark=error) if has_vision else missing

    return read


def _encoders(photo: bytes) -> tuple[tuple[Speed, ...], bytes]:
    """(how fast a photograph is stored, what is stored then)"""
    simd = installed_encoder() == "pillow-simd"
    speeds, stored = [], b""
    for encoder in ("pillow-simd",) if simd else ("turbo", "pillow"):
        settings = EncodeSettings(pixels="jpeg", shorter_side=256, encoder=encoder)
        stored = encode(photo, settings).data
        rate = _rate(partial(encode, photo, settings))
        remark = {"turbo": "the default", "pillow": "`make simd` replaces it by Pillow-SIMD"}.get(encoder, "")
        speeds.append(Speed(name=encoder, images_per_s=rate, remark=remark))
    return tuple(speeds), stored


def _resizers(stored: bytes) -> tuple[Speed, ...]:
    pixels = decode(stored, Colour.RGB, 1)
    slot = np.empty((224, 224, 3), np.uint8)
    opencv = _rate(lambda: cv2.resize(pixels, (224, 224), dst=slot, interpolation=cv2.INTER_LINEAR))
    own = _rate(lambda: bilinear(pixels, slot)) if bilinear else None
    remark = "the same pixels" if own else "not compiled, or no x86-64 processor with AVX2"
    return Speed(name="hjepa's own", images_per_s=own, remark=remark), Speed(name="OpenCV", images_per_s=opencv)


def _rate(action: Callable[[], object]) -> float:
    """How often a second of processor time."""
    count, started = 0, time.process_time()
    while (spent := time.process_time() - started) < _MEASURED_S:
        action()
        count += 1
    return count / spent


def _gpus() -> tuple[str, ...]:
    """NVIDIA's, by the driver's own tool."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def _ask(code: str, data: bytes) -> Callable[[], tuple[str, str]]:
    """Begin a Python process; call the result for (the last line that it prints, '') or ('', what is wrong with it)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile() as file:  # not a pipe: no one would have to wait until the process reads
        file.write(data)
        file.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    deadline = time.monotonic() + _PATIENCE_S

    def read() -> tuple[str, str]:
        try:
            printed, said = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return "", f"no answer within {_PATIENCE_S} s; is the machine busy, or its disk slow?"
        lines = (said if process.returncode else printed).decode(errors="replace").strip().splitlines()
        last = lines[-1][:200] if lines else f"ended with {process.returncode} and no word"
        return ("", last) if process.returncode or not lines else (last, "")

    return read
