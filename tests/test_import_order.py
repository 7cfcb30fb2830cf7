"""The house: every file in its folder, folders in the order of the data, and imports only from what is above."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_MODULES = 13
"""In a folder, without `__init__`: what a reader takes in at a glance."""
_HOUSES = {
    "hjepa_shards": """
        : errors
        base: lazy_names yaml_reader regular_files atomic_files thread_map keyed_random shown_text notebook_html
            terminal progress_bar machine_limits
        : config
        storage: retry remote_files decompress http_download safe_unpack shard_cache scratch_folder build_output
        images: silent_decoders orientation png_chunks image_formats image_magic image_integrity deep_gray rgb_pixels
            downscale encode decode crop thumbnail
        shards: raw_sample class_names sample_table tar_headers tar sidecar manifest_content manifest sample_keys
            location exclusions
        sources: base
        sources.formats: class_folders tar_members image_files tar_patterns tar_archives tar_table tar_samples pickles
            matlab captions caption_tables caption_lists split_from_name
        sources.published: cifar stl10 imagenet_val imagenet places365 coco
        sources.own: folder webdataset image_text bundled
        sources: registry
        downloading: published_files verify_raw
        building: build_rules shard_columns sample_list shard_writer build_plan shard_tasks ray_cluster merge_parts
            same_input build index_tars
        verifying: verify_split verify_images verify_remote repair
        mixture: source_counts weight_schedule permutation sample_order mixture source_shares resume_state forecast
            expected_sources write_mixture class_windows
        loader: stage_times shard_store held_rows remote_store shard_prefetch sample_reader batch png_batch fill_batch
            loader read_split split_view bench
        duplicates: perceptual_hash hamming_pairs fingerprints find_duplicates
        reports: svg_bars svg_curves html_page split_survey inline_images duplicates_section exclusions_section
            shards_report
        commands: doctor tables making checking fetching showing reporting machine
        : cli __main__
    """,
    "hjepa_train": """
        base: device full_memory launcher distributed keyed_integers device_peaks metrics_file stop_signals phase_clock
            schedules former_defaults mixture_facts
        modules: keyed_drops offered_memory batch_norm frozen_network relative_bias layers ema flop_count
            learning_signals block_masks anticollapse
        backbones: base vit convnext timm_layers swin tinyvit timm_nets registry
        objectives: recipe base
        objectives.joint: predictor hjepa
        objectives.masked: mae
        objectives.contrast: simclr
        objectives.supervised: mixed_pairs supervised
        objectives: registry
        data: augment micro_batches own_transform epoch_position torch_dataset lightning_callback shared_classes
            labelled_images
        parallel: equal_ranks layout rank_watchdog memory_estimate
        checkpoints: sharded_metadata checkpoint_files sharded_files background_saver
        weights: torch_files weight_files foreign_layouts init_config position_tables fitting
        evaluation: frozen_features standardised_rows linear_knn_probes ridge_probe sgd_probe attentive_probe
            probe_failures finished_probes own_classifier online_probes
        reports: text_table metric_charts confusion_chart image_panels run_page run_report compare_runs run_log
        training: parameter_groups optimizer config recipe_values saved_config nonfinite_guard out_of_memory diagnosis
            trainer
        jobs: rank_facts resume_checks extension saved_objective weight_sources initial_weights run dry_run evaluate
            bench bench_report speed_here export
        : cli __main__
    """,
}
"""A folder: its modules; both in order. '' is the package itself."""
OF_SHARDS = ("errors", "config", "base", "reports")
"""What the trainer imports of hjepa_shards besides its top."""


def order_of(house: str) -> list[str]:
    """Modules as dotted names below the package, the lowest first."""
    order, folder = [], ""
    for word in house.split():
        if word.endswith(":"):
            folder = word[:-1] + "." if word != ":" else ""
        else:
            order.append(folder + word)
    return order


ORDER = {package: order_of(house) for package, house in _HOUSES.items()}


def modules_of(package: str) -> dict[str, Path]:
    """Module name below the package -> its file, no `__init__` among them."""
    files = (path for path in sorted((ROOT / package).rglob("*.py")) if path.name != "__init__.py")
    return {".".join(path.relative_to(ROOT / package).with_suffix("").parts): path for path in files}


def imports_of(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file: modules, not what is taken from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()}
            found |= modules if modules == inner else modules | {str(node.module)}
    return found


@pytest.mark.parametrize("package", ORDER)
def test_every_module_has_its_place_in_the_order(package: str) -> None:
    assert sorted(ORDER[package]) == sorted(modules_of(package))


@pytest.mark.parametrize("package", ORDER)
def test_modules_import_only_what_is_above_them(package: str) -> None:
    modules = modules_of(package)
    wrong = []
    compiled = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / package).rglob("*.c")}
    for index, module in enumerate(ORDER[package]):
        allowed = compiled | {f"{package}.{above}" for above in ORDER[package][:index]}
        for name in imports_of(modules[module]):
            if (name == package or name.startswith(f"{package}.")) and name not in allowed:
                wrong.append(f"{package}.{module} imports {name}")
    assert not wrong


@pytest.mark.parametrize("package", ORDER)
def test_a_folder_is_taken_in_at_a_glance(package: str) -> None:
    counts: dict[Path, int] = {}
    for path in modules_of(package).values():
        counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("package", ORDER)
def test_a_folder_says_in_one_docstring_what_is_in_it(package: str) -> None:
    for folder in {path.parent for path in modules_of(package).values()} - {ROOT / package}:
        [only] = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        assert isinstance(only, ast.Expr), f"{folder}: more than a docstring; literals that name rooms are registries"


@pytest.mark.parametrize("package", ORDER)
def test_the_package_names_its_folders_in_their_order(package: str) -> None:
    said = " ".join((importlib.import_module(package).__doc__ or "").split())
    folders = dict.fromkeys(module.partition(".")[0] for module in ORDER[package] if "." in module)
    assert f"before them: {', '.join(folders)};" in said


@pytest.mark.parametrize("package", ORDER)
def test_no_folder_has_the_name_of_something_public(package: str) -> None:
    """`from hjepa_shards import build` would give the folder as soon as anything in it was imported."""
    top = importlib.import_module(package)
    folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir()}
    assert folders.isdisjoint(top.__all__)
    assert {path.stem for path in (ROOT / package).glob("*.py")}.isdisjoint(top.__all__)


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_no_tools_tests_benchmarks_or_examples(package: str) -> None:
    forbidden = {"tools", "tests", "benchmarks", "examples"} | ({"hjepa_train"} if package == "hjepa_shards" else set())
    for path in modules_of(package).values():
        assert not {name.split(".")[0] for name in imports_of(path)} & forbidden, path


def test_shards_import_no_torch() -> None:
    for path in modules_of("hjepa_shards").values():
        names = {name.split(".")[0] for name in imports_of(path)}
        assert not names & {"torch", "torchvision", "tensorboard", "safetensors"}, path
    everything = ", ".join(f"hjepa_shards.{name}" for name in ORDER["hjepa_shards"] if name != "__main__")
    code = f"import sys, {everything}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_trainer_uses_little_of_the_shard_engine_besides_its_top() -> None:
    public = set(importlib.import_module("hjepa_shards").__all__)
    for path in modules_of("hjepa_train").values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or str(node.module).partition(".")[0] != "hjepa_shards":
                continue
            below = str(node.module).split(".")[1:]
            if below:
                assert below[0] in OF_SHARDS, f"{path}: {node.module}"
            else:
                assert {alias.name for alias in node.names} <= public, path
