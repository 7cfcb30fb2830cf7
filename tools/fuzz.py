"""Damaged and hostile inputs, thousands a minute: every command ends with an exit code of its own and one line.

    python tools/fuzz.py tars-index --minutes 10 --seed 3

A small valid input is changed (bits, numbers, pieces moved or repeated, an end cut off; checksums made right again half
of the time, so that what comes after them is reached) and given to the command in a forked process, with 20 seconds and
a bounded memory. Anything but exit code 0, 2 or 3 (1 of `verify`), a traceback or a hang is a failure: its input is
kept below --out. The same seed gives the same inputs.
"""

import argparse
import gc
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import numpy as np
import typer.main
import yaml
from PIL import Image
from zlib_ng.zlib_ng import crc32

import hjepa_shards
from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.shards.sidecar import HEADER_BYTES, ROW

TIMEOUT_S = 20
MORE_MEMORY = 2 << 30
"""Of addresses, above what the process has when it starts."""
ODD = [
    b"-1",
    b"0",
    b"1e999",
    b"nan",
    b"null",
    b"[]",
    b'""',
    b"9" * 40,
    b"2147483648",
    b"18446744073709551615",
    b"4294967295",
]


@dataclass(frozen=True)
class Target:
    """Files that are changed, one of them for each input, and the commands that read them."""

    files: list[Path]
    commands: list[list[str]]
    seal: Callable[[Path, bytes], bytes] = lambda path, data: data
    """Makes checksums right again; it may write other files, too."""
    codes: tuple[int, ...] = (0, 2, 3)
    leaves: tuple[str, ...] = ()
    """Files that a command makes beside the one that it reads."""
    afresh: Path | None = None
    """A folder that a command may change, copied for each input."""


# ---- changes


def changed(data: bytes, random_: random.Random) -> bytes:
    """One to four changes."""
    out = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 4))):
        at = random_.randrange(len(out) + 1)
        kind = random_.randrange(6)
        if kind == 0 and out:
            for _ in range(random_.randrange(1, 9)):
                out[random_.randrange(len(out))] ^= 1 << random_.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2 and (numbers := list(re.finditer(rb"-?\d+", out))):
            number = random_.choice(numbers)
            out[slice(*number.span())] = random_.choice([*ODD, random_.choice(numbers)[0]])
        elif kind == 3:
            wide = random_.choice((1, 4, 8, 12))
            out[at : at + wide] = random_.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * wide
        elif kind == 4:
            block = random_.choice((1, 80, 512))
            start, stop = sorted(random_.randrange(len(out) // block + 1) * block for _ in range(2))
            out[at // block * block : at // block * block] = out[start:stop][: 1 << 16] * random_.choice((1, 1, 3, 40))
        elif kind == 5:
            del out[at : at + random_.choice((1, 2, 80, 512, 4096))]
    return bytes(out[: 1 << 22])


def sealed_tar(path: Path, data: bytes) -> bytes:
    """The checksum of every block that looks like a header."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


def sealed_manifest(path: Path, data: bytes) -> bytes:
    body, _, _ = data.rpartition(b',\n"checksum"')
    return body + b',\n"checksum": "%s"\n}\n' % hashlib.blake2b(body, digest_size=32).hexdigest().encode()


def sealed_sidecar(path: Path, data: bytes) -> bytes:
    head, rows = bytearray(data[:HEADER_BYTES]), bytearray(data[HEADER_BYTES:])
    if len(head) == HEADER_BYTES:
        head[40:44] = struct.pack("<I", crc32(bytes(head[:40])))
    for at in range(0, len(rows) - ROW.itemsize + 1, ROW.itemsize):
        rows[at + 76 : at + 80] = struct.pack("<I", crc32(bytes(rows[at : at + 76])))
    return bytes(head + rows)


def sealed_checkpoint(path: Path, data: bytes) -> bytes:
    listed = path.parent / "files.json"
    if path != listed:
        files = json.loads(listed.read_bytes())
        said = {"bytes": len(data), "blake2b": hashlib.blake2b(data).hexdigest()}
        listed.write_text(json.dumps({name: said if name == path.name else old for name, old in files.items()}))
    return data


# ---- targets


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), 20 * number, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def tars(folder: Path) -> list[Path]:
    """Of each format, with long names, a hard link and a second tar after the first."""
    paths = []
    for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = folder / f"{number}" / "x.tar"
        path.parent.mkdir(parents=True)
        for part in range(2):
            with tarfile.open(path.with_suffix(".part"), "w", format=kind) as tar:
                long = "" if kind == tarfile.USTAR_FORMAT else "d\u00e9/" * 60
                for name, data in {"a.jpg": jpeg(part), "a.cls": b"1", "a.txt": b"one", "a.json": b'{"caption": "x"}',
                                   "b.left.jpg": jpeg(2), "b.jpg": jpeg(3)}.items():  # fmt: skip
                    info = tarfile.TarInfo(f"{long}{part}{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                info = tarfile.TarInfo(f"{part}c.jpg")
                info.type, info.linkname = tarfile.LNKTYPE, f"{long}{part}a.jpg"
                tar.addfile(info)
            with path.open("ab") as file:
                file.write(path.with_suffix(".part").read_bytes())
        paths.append(path)
    return paths


def tars_build(folder: Path) -> Target:
    command = ["hjepa-shards", "build", "webdataset", "--workers", "1", "--out", "OUT", "--raw", "FILE"]
    return Target(tars(folder), [command, [*command, "--image", "left.jpg"]], sealed_tar)


def tars_index(folder: Path) -> Target:
    return Target(
        tars(folder), [["hjepa-shards", "index", "FOLDER"]], sealed_tar, leaves=("manifest.json", "x.tar.index")
    )


def lists(folder: Path) -> Target:
    texts = {
        "a.csv": b'image,caption,split\n0.jpg,"one, ""two""",train\n1.jpg,"line\n\nline",test\n',
        "b.csv": b'raw;filename\n"[""x"", ""y""]";0.jpg\n[\'z\', "w"];1.jpg\n',
        "c.tsv": b'a "cat"\t0.jpg\n"a dog\nruns"\t1.jpg\n',
        "d.csv": b"image_name| comment_number| comment\n0.jpg| 0| Two .\n1.jpg| 4   A dog .\n",
        "e.token": b"0.jpg#0\tone\n0.jpg#1 two\n1.jpg.1#0\tthree\n",
        "f.jsonl": b'{"image": "0.jpg", "caption": "one"},\n{"file_name": "1.jpg", "text": ["a"], "split": "val"}\n',
        "g.json": b'[{"image": "0.jpg", "caption": "one"}, {"image": "1.jpg", "captions": ["a"]}]',
    }
    paths = []
    for name, text in texts.items():
        path = folder / name[0] / name
        path.parent.mkdir()
        path.write_bytes(text)
        for number in range(2):
            (path.parent / f"{number}.jpg").write_bytes(jpeg(number))
        paths.append(path)
    command = [
        "hjepa-shards",
        "build",
        "image-text",
        "--workers",
        "1",
        "--out",
        "OUT",
        "--raw",
        "FOLDER",
        "--list",
        "FILE",
    ]
    return Target(paths, [command])


def built(folder: Path) -> Path:
    build("digits", raw=None, out=folder / "shards", options=BuildOptions(samples_per_shard=16, limit=40))
    return folder / "shards" / "digits" / "train"


def manifest(folder: Path) -> Target:
    commands = [["hjepa-shards", name, "FOLDER"] for name in ("verify", "info")]
    return Target([built(folder) / "manifest.json"], commands, sealed_manifest, (0, 1, 2, 3))


def sidecar(folder: Path) -> Target:
    commands = [["hjepa-shards", "verify", "--deep", "FOLDER"], ["hjepa-shards", "duplicates", "FOLDER"]]
    return Target(sorted(built(folder).glob("*.index")), commands, sealed_sidecar, (0, 1, 2, 3))


def configuration(folder: Path) -> Path:
    content = {
        "run": {"name": "tiny", "seed": 3, "folder": f"{folder}/runs"},
        "data": {"root": f"{folder}/shards", "strategy": "weighted", "image_size": 16, "epoch_samples": 32,
                 "sources": [{"name": "digits", "weight": 0.75}]},
        "backbone": {"vit": {"width": 24, "depth": 2, "heads": 2, "patch": 2}},
        "objective": {"hjepa": {"levels": 1, "momentum": 0.09, "predictor": {"width": 16, "depth": 1, "heads": 2}}},
        "training": {"device": "cpu", "epochs": 1, "global_batch": 16, "threads": 1, "save_every_steps": 1},
        "logging": {"every_steps": 1, "images_every": 0, "tensorboard": False},
    }  # fmt: skip
    path = folder / "yaml" / "run.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(content))
    return path


def yaml_file(folder: Path) -> Target:
    built(folder)
    commands = [["hjepa-shards", "plan", "FILE"], ["hjepa-train", "run", "FILE", "--dry-run"]]
    return Target([configuration(folder)], commands)


def run_folder(folder: Path, *names: str) -> Target:
    built(folder)
    path = configuration(folder)
    code, said = forked(["hjepa-train", "run", str(path)], TIMEOUT_S * 5)
    assert code == 0, said
    [last] = sorted((folder / "runs" / "tiny" / "checkpoints").glob("step-*"))[-1:]
    commands = [
        ["hjepa-train", "run", str(path), "--resume", "auto"],
        ["hjepa-train", "export", str(folder / "runs" / "tiny"), "--to", "safetensors"],
    ]
    return Target([last / name for name in names], commands, sealed_checkpoint, afresh=folder / "runs")


TARGETS: dict[str, Callable[[Path], Target]] = {
    "yaml": yaml_file,
    "manifest": manifest,
    "sidecar": sidecar,
    "state": lambda folder: run_folder(folder, "state.json"),
    "checkpoint": lambda folder: run_folder(folder, "model.safetensors", "optimizer.pt", "files.json"),
    "tars-build": tars_build,
    "tars-index": tars_index,
    "lists": lists,
}


# ---- running


_CLIS: dict[str, Any] = {}


def import_all(package_name: str) -> None:
    """All that a command could import, and the parser of its options, once and not in each process."""
    package = import_module(package_name)
    for module in walk_packages(package.__path__, f"{package_name}."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    cli: Any = import_module(f"{package_name}.cli")
    _CLIS[package_name.replace("_", "-")] = cli
    cli.app = typer.main.get_command(cli.app)


def warm(command: list[str]) -> None:
    """The command in this process: what it loads and remembers is then there in each that is forked from it."""
    sys.argv = command
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), suppress(SystemExit):
        _CLIS[command[0]].main()


def forked(command: list[str], timeout_s: int = TIMEOUT_S) -> tuple[int | str, str]:
    """The exit code, or what ended the process instead; and what was printed."""
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if not child:
            code = 70
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(timeout_s)
                pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
                limit = pages * resource.getpagesize() + MORE_MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                for stream in (1, 2):
                    os.dup2(printed.fileno(), stream)
                sys.argv = command
                _CLIS[command[0]].main()
                code = 0
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
            except BaseException:
                traceback.print_exc()
                code = 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        printed.seek(0)
        said = printed.read().decode("utf-8", "replace")
    if os.WIFSIGNALED(status):
        killer = os.WTERMSIG(status)
        return "hang" if killer == signal.SIGALRM else signal.Signals(killer).name, said
    return os.WEXITSTATUS(status), said


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("name", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="where inputs that failed are kept")
    options = parser.parse_args()
    import_all(hjepa_shards.__name__)
    if options.name in ("yaml", "state", "checkpoint"):
        import_all("hjepa_train")
    memory = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    try:
        failures = fuzz(options.name, work, options.minutes * 60, options.seed, options.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    raise SystemExit(bool(failures))


def fuzz(name: str, work: Path, seconds: float, seed: int, out: Path) -> int:
    """The number of inputs that failed."""
    target = TARGETS[name](work)
    whole = {path: path.read_bytes() for path in target.files}
    kept = work / "kept"
    if target.afresh:
        shutil.copytree(target.afresh, kept)
    for command in target.commands:
        if command[0] == "hjepa-shards":  # hjepa-train has threads of its own, which do not survive a fork
            warm(in_places(command, target.files[0], work))
            clean(target, target.files[0], work)
    gc.freeze()  # else each process copies what its collector looks at
    codes, failed = Counter[str](), Counter[str]()
    began, number = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        random_ = random.Random(f"{name} {seed} {number}")
        path = random_.choice(target.files)
        data = changed(whole[path], random_) if number else whole[path]  # the first as it is: is it read?
        if number and random_.random() < 0.5:
            data = target.seal(path, data)
        path.write_bytes(data)
        command = in_places(random_.choice(target.commands), path, work)
        code, said = forked(command)
        codes[str(code)] += 1
        if code not in target.codes or "Traceback" in said or (not number and code not in (0, 3)):
            what = f"{code}: {(said.strip().splitlines() or [''])[-1][:160]}"
            failed[re.sub(r"\d+", "N", what)] += 1
            folder = out / name / f"{seed}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(data)
            (folder / "said.txt").write_text(f"{' '.join(command)}\n{code}\n{said}")
        path.write_bytes(whole[path])
        clean(target, path, work)
        if target.afresh:
            shutil.rmtree(target.afresh)
            shutil.copytree(kept, target.afresh)
        number += 1
    took_s = time.monotonic() - began
    print(f"{name}: {number:,} inputs in {took_s:,.0f} s, exit codes {dict(sorted(codes.items()))}")
    for what, count in failed.most_common(20):
        print(f"{count:,} failed: {what}")
    return sum(failed.values())


def in_places(command: list[str], path: Path, work: Path) -> list[str]:
    """The command about one file."""
    places = {"FILE": str(path), "FOLDER": str(path.parent), "OUT": str(work / "out")}
    return [places.get(word, word) for word in command]


def clean(target: Target, path: Path, work: Path) -> None:
    """Away with what the command wrote."""
    shutil.rmtree(work / "out", ignore_errors=True)
    for name in target.leaves:
        (path.parent / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
