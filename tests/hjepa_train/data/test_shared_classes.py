"""Whatever a test split calls its classes by number, its score is that of their names."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_shards import BuildOptions, DataConfig, build, index_tars, manifest_at
from hjepa_shards.errors import InputError
from hjepa_shards.shards.manifest import save_manifest
from hjepa_train import evaluate, load_run_config, train
from hjepa_train.data.labelled_images import EvaluationConfig, read_bank_and_test
from hjepa_train.data.shared_classes import UNKNOWN, counted, label_numbers, require_shared_classes
from hjepa_train.evaluation.online_probes import OnlineProbes, find_labels
from hjepa_train.reports.run_report import probed, read_evaluations
from hjepa_train.training.config import build_parts
from tests.hjepa_shards.sources.layouts import put, tarred
from tests.hjepa_train.tiny import tiny_run

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
HUES = {"ant": (220, 30, 30), "bee": (30, 220, 30), "cat": (30, 30, 220), COMPOSED: (220, 220, 30)}
HUES |= {"dog": (30, 220, 220), "wasp": (220, 30, 220), "1": (30, 30, 30), "2": (220, 220, 220), "3": (120, 30, 220)}


def image(name: str, number: int) -> bytes:
    """A colour for each class, with a little noise: any probe tells them apart."""
    rng = np.random.default_rng([number, len(name)])
    colour = HUES[COMPOSED if name == DECOMPOSED else name]
    pixels = np.clip(np.array(colour) + rng.integers(-20, 21, (16, 16, 3)), 0, 255).astype(np.uint8)
    return b"P6 16 16 255\n" + pixels.tobytes()


def tree(root: Path, splits: Mapping[str, str]) -> Path:
    """Folders of a class of each name; `name-` is an empty one."""
    for split, names in splits.items():
        for name in names.split():
            (root / split / name.rstrip("-")).mkdir(parents=True)
            if not name.endswith("-"):
                put(root, {f"{split}/{name}/{number}.ppm": image(name, number) for number in range(8)})
    return root


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train(load_run_config(tiny_run(shards, folder)), stop_after=2)


@pytest.fixture
def scored(shards: Path, trained: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What `eval` says of the splits below the folder `mine`."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(shards), str(tmp_path / "shards")))
    (tmp_path / "shards").mkdir()
    for built_split in shards.iterdir():
        (tmp_path / "shards" / built_split.name).symlink_to(built_split)
    return lambda **changes: evaluate(run, source="mine", probes=("knn",), **changes)


def percents(result: dict[str, Any]) -> set[float]:
    [row] = [row for row in result["rows"] if row["features"] == "raw pixels"]
    return {row["knn"]}


def built(raw: Path, out: Path, **options: Any) -> None:
    build("folder", raw=raw, out=out, options=BuildOptions(name="mine", **options))


@pytest.mark.parametrize(
    ("rules", "names", "tested", "left_out"),
    [
        (1, "ant bee cat", "ant bee cat", ""),
        (1, "ant bee cat", "ant cat", ""),  # missing: 50.0 on every row where numbers are compared
        (2, "ant bee cat", "ant cat", ""),
        (2, "bee cat dog", "cat dog", ""),
        (1, "ant cat", "ant bee cat", "bee"),  # additional, in the middle
        (2, "bee cat", "ant bee cat dog", "ant dog"),
        (2, "ant bee cat", "ant wasp cat", "wasp"),  # renamed
        (1, "ant bee- cat", "ant bee cat", "bee"),  # nothing to learn it from
        (2, "ant bee cat", "ant- bee cat", ""),
        (1, f"ant {COMPOSED} dog", f"{DECOMPOSED} dog", ""),
        (2, f"ant {DECOMPOSED} dog", f"ant {COMPOSED}", ""),
        (1, "1 2 3", "2 3", ""),  # names, though of digits
    ],
)
def test_classes_meet_by_name_in_splits_of_both_rules(
    tmp_path: Path, scored: Callable[..., Any], rules: int, names: str, tested: str, left_out: str
) -> None:
    """Rules 1 numbered each split alone."""
    raw, out = tree(tmp_path / "raw", {"train": names, "test": tested}), tmp_path / "shards"
    if rules == 1:
        for split in ("train", "test"):
            build("folder", raw=raw / split, out=tmp_path / split, options=BuildOptions(name="mine"))
            shutil.copytree(tmp_path / split / "mine" / "train", out / "mine" / split)
    else:
        built(raw, out)
    result = scored()
    assert percents(result) == {100.0}
    assert result.get("left_out", {"images": 0, "classes": []}) == {
        "images": 8 * len(left_out.split()),
        "classes": left_out.split(),
    }
    note = probed([result]).note
    assert ("left out of the score" in note) == bool(left_out)
    assert all(repr(name) in note for name in left_out.split())


@pytest.mark.parametrize(("names", "tested"), [("ant bee", "cat dog"), ("ant bee", "1 2"), ("ant bee- cat", "bee")])
def test_where_nothing_is_left_it_is_refused_by_name(
    tmp_path: Path, scored: Callable[..., Any], names: str, tested: str
) -> None:
    built(tree(tmp_path / "raw", {"train": names, "test": tested}), tmp_path / "shards")
    with pytest.raises(InputError, match=rf"mine/test: .*{tested.split()[0]}.*--split"):
        scored()


@pytest.mark.parametrize("named", ["train", "test"])
def test_names_do_not_meet_bare_numbers(tmp_path: Path, scored: Callable[..., Any], named: str) -> None:
    bare = "test" if named == "train" else "train"
    built(tree(tmp_path / "raw", {"train": "ant bee"}), tmp_path / "shards")
    mine = tmp_path / "shards" / "mine"
    if named == "test":
        (mine / "train").rename(mine / "test")
    files = {f"{n}.{kind}": data for n in range(8) for kind, data in (("bmp", bmp(n % 2)), ("cls", b"%d" % (n % 2)))}
    index_tars(put(mine / bare, {"0.tar": tarred(files)}))
    with pytest.raises(InputError, match=rf"class names in both splits or in neither .* and not in \S+mine/{bare}, "):
        scored()


def bmp(label: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), HUES["ant" if label else "bee"]).save(buffer, "BMP")
    return buffer.getvalue()


def test_bare_numbers_meet_bare_numbers_and_names_that_repeat_them(shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(shards / "digits", tmp_path / "digits")).parent
    data = DataConfig.model_validate(
        {"root": str(root), "sources": [{"name": "digits", "weight": 1}], "image_size": 16}
    )
    labels = torch.tensor([-1, 0, 3, 9])
    for split in ("train", "test"):
        folder = root / "digits" / split
        manifest = manifest_at(folder)
        save_manifest(folder, type(manifest)(**{**vars(manifest), "class_names": ()}))
        assert label_numbers(data, "digits", "test")(labels).tolist() == labels.tolist()
    folder = root / "digits" / "train"
    manifest = manifest_at(folder)
    save_manifest(folder, type(manifest)(**{**vars(manifest), "class_names": tuple("012345678")}))
    assert label_numbers(data, "digits", "test")(labels).tolist() == [-1, 0, 3, UNKNOWN]
    save_manifest(folder, type(manifest)(**{**vars(manifest), "class_names": tuple("123456789")}))
    with pytest.raises(InputError, match="class names in both splits or in neither expected"):
        require_shared_classes(data, "digits", "test")
    with pytest.raises(InputError, match="train: labels below 9, one a class name, expected, 9 found"):
        label_numbers(data, "digits", "train")(labels)


def test_a_class_that_only_the_bank_lacks_counts_as_wrong_and_is_named(tmp_path: Path) -> None:
    built(tree(tmp_path / "raw", {"train": "ant bee cat", "test": "ant bee cat"}), tmp_path)
    data = DataConfig.model_validate(
        {"root": str(tmp_path), "sources": [{"name": "mine", "weight": 1}], "image_size": 16}
    )
    settings = EvaluationConfig(bank=2)
    bank, test, left_out, unseen = read_bank_and_test(data, settings, "mine", "test", torch.device("cpu"))
    assert (len(test.labels), left_out.images) == (24, 0)
    assert len(unseen.classes) == 3 - len(bank.labels.unique())
    assert unseen.images == 8 * len(unseen.classes) > 0
    whole = counted(torch.tensor([0, 2]), torch.tensor([0, 1, UNKNOWN, -1]), is_whole=True)
    assert whole.tolist() == [True, False, False, False]
    assert counted(torch.tensor([0, 2]), torch.tensor([0, 1, -2]), is_whole=False).tolist() == [True, True, False]


def test_probes_during_a_run_meet_by_name(tmp_path: Path) -> None:
    built(tree(tmp_path / "raw", {"train": "ant bee- cat", "test": "ant bee cat"}), tmp_path)
    shutil.copytree(tmp_path / "mine" / "test", tmp_path / "mine" / "old")
    path = tiny_run(
        tmp_path, tmp_path / "run", data__sources=[{"name": "mine", "weight": 1}], evaluation={"crop_share": 1}
    )
    config = load_run_config(path)
    _, objective = build_parts(config, 36, "tiny")

    def best(split: str, names: tuple[str, ...]) -> set[float]:
        folder = tmp_path / "mine" / split
        manifest = manifest_at(folder)
        save_manifest(folder, type(manifest)(**{**vars(manifest), "class_names": names}))
        settings = EvaluationConfig(split=split, crop_share=1, during_every_epochs=1)
        plan = find_labels(config.data, settings, steps_per_epoch=1, global_batch=8)
        assert plan is not None
        probes = OnlineProbes(
            plan,
            objective,
            config.data,
            settings,
            num_steps=36,
            log_every=1,
            checkpoints=tmp_path / "run",
            keep_best="knn_target",
            say=pytest.fail,
        )
        return set(probes(1)[0].values())

    assert best("test", ("ant", "bee", "cat")) == {100.0}, "bee is left out"
    assert best("old", ("cat", "wasp", "ant")) == {0.0}, "by name, and not by number"
    said: list[str] = []
    manifest = manifest_at(folder := tmp_path / "mine" / "old")
    save_manifest(folder, type(manifest)(**{**vars(manifest), "class_names": ("x", "y", "z")}))
    default = EvaluationConfig(split="old")
    assert find_labels(config.data, default, steps_per_epoch=1, global_batch=8, say=said.append) is None
    assert "no probes during the run: " in said[0]
    with pytest.raises(InputError, match="none of them among 'x', 'y', 'z'"):
        find_labels(
            config.data, EvaluationConfig(split="old", during_every_epochs=1), steps_per_epoch=1, global_batch=8
        )


def test_what_was_finished_with_other_names_is_probed_again(tmp_path: Path, scored: Callable[..., Any]) -> None:
    built(tree(tmp_path / "raw", {"train": "ant bee cat", "test": "ant bee cat"}), tmp_path / "shards")
    assert percents(scored()) == {100.0}
    folder = tmp_path / "shards" / "mine" / "test"
    manifest = manifest_at(folder)
    save_manifest(folder, type(manifest)(**{**vars(manifest), "class_names": ("bee", "ant", "cat")}))
    assert percents(scored()) == {100 / 3}
    [result] = json.loads((tmp_path / "run" / "evaluation.json").read_bytes())
    assert result["protocol"] == 2


def partly_labelled(root: Path) -> None:
    """mine: 24 of 32 images of train and 6 of 8 of test have one of two labels."""
    for split, number in (("train", 32), ("test", 8)):
        files: dict[str, bytes] = {}
        for n in range(number):
            files[f"{n:03}.bmp"] = bmp(n % 2)
            if n % 4 < 3:
                files[f"{n:03}.cls"] = b"%d" % (n % 2)
        index_tars(put(root / "mine" / split, {"0.tar": tarred(files)}))


def test_a_partly_labelled_split_is_probed_with_its_count(tmp_path: Path, scored: Callable[..., Any]) -> None:
    partly_labelled(tmp_path / "shards")
    said: list[str] = []
    result = scored(say=said.append)
    assert percents(result) == {100.0}
    assert (result["bank"], result["test"], result["unlabelled"]) == (24, 6, {"bank": 8, "test": 2})
    assert "8 more of mine train have no label and are left out" in said
    note = probed(read_evaluations(tmp_path / "run" / "evaluation.json")).note
    assert "Bank 24, test 6;" in note
    assert "Images without a label, left out: 8 of the bank and 2 of the test" in note


def test_probes_during_a_run_say_how_many_images_have_a_label(tmp_path: Path) -> None:
    partly_labelled(tmp_path)
    path = tiny_run(
        tmp_path, tmp_path / "run", data__sources=[{"name": "mine", "weight": 1}], evaluation={"crop_share": 1}
    )
    config, said = load_run_config(path), list[str]()
    plan = find_labels(config.data, config.evaluation, steps_per_epoch=1, global_batch=8, say=said.append)
    assert said == [
        f"probes during the run: {found} images of {tmp_path}/mine/{split} have a label; the others are left out"
        for split, found in (("train", "24 of 32"), ("test", "6 of 8"))
    ]
    bank, *_ = read_bank_and_test(config.data, config.evaluation, "mine", "test", torch.device("cpu"))
    whole, some = torch.cat(list(bank.batches())), torch.tensor([5, 0, 23, 8])
    assert torch.equal(bank.at(some), whole[some])
    assert whole[:, 0].float().mean((1, 2)).gt(125).tolist() == bank.labels.bool().tolist(), "ants are red"
    _, objective = build_parts(config, 36, "tiny")
    probes = OnlineProbes(
        plan,
        objective,
        config.data,
        config.evaluation,
        num_steps=36,
        log_every=1,
        checkpoints=tmp_path / "run",
        keep_best=None,
        say=pytest.fail,
    )
    assert set(probes(1)[0].values()) == {100.0}
