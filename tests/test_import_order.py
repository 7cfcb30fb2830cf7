"""Imports follow the data: a module imports only what stands above it here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_ORDER = {
    "hjepa_shards": (
        "errors exclusions config files cache target threads fetch unpack rng sample tar images structure shrink "
        "sidecar table columns listing keys encode manifest sources.base sources.pickles sources.cifar sources.tree "
        "sources.folder sources.tar_members sources.raw_files sources.matlab sources.imagenet_val sources.imagenet "
        "sources.places365 sources.coco sources.offline sources.stl10 sources.remote sources.inflate "
        "sources.tar_patterns sources.archives sources.captions sources.split_words sources.tar_table "
        "sources.webdataset sources.caption_lists sources.image_text sources writer blueprint tasks cluster merge "
        "build index verify repair counting staircase permutation plan crop places mixture shares state stages store "
        "remote_store prefetch decode contents reader perceptual hamming fingerprints duplicates batch small filling "
        "loader evaluation bench view dryrun mixfile download rawcheck unbuilt terminal charts curves page survey "
        "pictures copies leftout report capacity doctor commands commands.tables commands.making commands.checking "
        "commands.fetching commands.showing commands.reporting commands.machine cli "
    ),
    "hjepa_train": (
        "distributed draws schedules flops hardware layers ema scale backbones.base backbones.vit backbones masks "
        "augment anticollapse metrics objectives.base objectives.predictor objectives.hjepa objectives.mae "
        "objectives.simclr objectives memory optim data dataset journal checkpoint probe ridge sgd_probe attentive "
        "heldout finished sheet plots pictures page report comparison runlog interrupts lookout guard sharded saving "
        "watch trainer runconfig full_memory run dryrun clock bench bench_report evaluate export cli __main__ "
    ),
}
ORDER = {package: names.split() for package, names in _ORDER.items()}


def modules_of(package: str) -> dict[str, Path]:
    """Module name below the package -> its file; the package's own `__init__` is ''."""
    files = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        files[".".join(part for part in parts if part != "__init__")] = path
    return files


def imports_of(path: Path, modules: set[str], package: str) -> set[str]:
    """Dotted names imported anywhere in a file; a name taken from a package counts as a module where it is one."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            source = str(node.module)
            below = source.removeprefix(package).removeprefix(".")
            inner = {f"{below}.{alias.name}".removeprefix(".") for alias in node.names} & modules
            whole = source.startswith(package) and len(inner) == len(node.names)
            found |= {f"{package}.{name}" for name in inner}
            found |= set() if whole else {source}
    return found


@pytest.mark.parametrize("package", ORDER)
def test_every_module_has_its_place_in_the_order(package: str) -> None:
    assert sorted(ORDER[package]) == sorted(set(modules_of(package)) - {""})


@pytest.mark.parametrize("package", ORDER)
def test_modules_import_only_what_stands_above_them(package: str) -> None:
    modules = modules_of(package)
    wrong = []
    compiled = {f"{package}.{path.stem}" for path in (ROOT / package).glob("*.c")}
    for place, module in enumerate(ORDER[package]):
        allowed = compiled | {f"{package}.{above}" for above in ORDER[package][:place]}
        for name in imports_of(modules[module], set(modules), package):
            if (name == package or name.startswith(f"{package}.")) and name not in allowed:
                wrong.append(f"{package}.{module} imports {name}")
    assert not wrong


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_no_tools_tests_or_benchmarks(package: str) -> None:
    modules = modules_of(package)
    strangers = {"tools", "tests", "benchmarks"} | ({"hjepa_train"} if package == "hjepa_shards" else set())
    for path in modules.values():
        assert not {name.split(".")[0] for name in imports_of(path, set(modules), package)} & strangers, path


def test_shards_import_no_torch() -> None:
    modules = modules_of("hjepa_shards")
    for path in modules.values():
        names = {name.split(".")[0] for name in imports_of(path, set(modules), "hjepa_shards")}
        assert not names & {"torch", "torchvision", "tensorboard", "safetensors"}, path
    everything = ", ".join(f"hjepa_shards.{name}" for name in ORDER["hjepa_shards"])
    code = f"import sys, {everything}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_trainer_uses_the_shard_engine_through_its_public_names_only() -> None:
    public = set(ast.literal_eval((ROOT / "hjepa_shards/__init__.py").read_text().partition("__all__ = ")[2]))
    for path in modules_of("hjepa_train").values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "hjepa_shards":
                assert node.module == "hjepa_shards", f"{path}: {node.module}"
                assert {alias.name for alias in node.names} <= public, path
