from pathlib import Path
from typing import Any

import pytest

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_shards.mixture.mixture import DataConfig, Mixture, load_mixture, load_mixture_file
from tests.hjepa_shards.stand_in import save_stand_in


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_stand_in(tmp_path, "digits", [40, 30])
    save_stand_in(tmp_path, "digits", [20], split="test")
    save_stand_in(tmp_path, "photos", [100, 50])
    return tmp_path


def data(root: Path, strategy: str, sources: list[dict[str, Any]], **more: Any) -> DataConfig:
    content = {"root": str(root), "strategy": strategy, "sources": sources, **more}
    return parse(DataConfig, content, "mix.yaml")


def load(root: Path, strategy: str, sources: list[dict[str, Any]], **more: Any) -> Mixture:
    return load_mixture(data(root, strategy, sources, **more), "mix.yaml")


def test_entries_are_sorted_by_name_with_their_manifests_and_weights(root: Path) -> None:
    sources = [
        {"name": "photos", "weight": 0.6},
        {"name": "digits", "weight": ".3"},
        {"name": "digits", "split": "test", "weight": 1e-1},
        {"name": "digits", "entry": "again", "weight": 0},
    ]
    mixture = load(root, "weighted", sources)
    assert [entry.name for entry in mixture.entries] == ["again", "digits", "digits-test", "photos"]
    assert [manifest.name for manifest in mixture.manifests] == [
        "digits-train",
        "digits-train",
        "digits-test",
        "photos-train",
    ]
    assert [Path(place).relative_to(root).as_posix() for place in mixture.places] == [
        "digits/train",
        "digits/train",
        "digits/test",
        "photos/train",
    ]
    assert mixture.weights == (0, 3, 1, 6)
    assert mixture.epoch_samples == 70 + 70 + 20 + 150
    for entry, manifest in zip(mixture.entries, mixture.manifests, strict=True):
        assert entry.num_samples == manifest.num_samples
        assert entry.shard_samples.tolist() == manifest.shard_samples.tolist()
        assert (entry.order_digest, entry.content_digest) == (manifest.order_digest, manifest.content_digest)


def test_balanced_draws_equally_and_shows_the_largest_source_once(root: Path) -> None:
    mixture = load(root, "balanced", [{"name": "photos"}, {"name": "digits"}])
    assert mixture.weights == (1, 1)
    assert mixture.epoch_samples == 300
    plan = mixture.make_plan(seed=1)
    planned = plan.samples(0, 300)
    assert sorted(planned.sample[planned.source == 1].tolist()) == list(range(150))


def test_concat_draws_by_size(root: Path) -> None:
    mixture = load(root, "concat", [{"name": "photos"}, {"name": "digits"}])
    assert mixture.weights == (7, 15)
    assert mixture.epoch_samples == 220
    planned = mixture.make_plan(seed=1).samples(0, 220)
    for source, size in enumerate((70, 150)):
        assert sorted(planned.sample[planned.source == source].tolist()) == list(range(size))


def test_an_epoch_may_be_configured(root: Path) -> None:
    mixture = load(root, "concat", [{"name": "photos"}], epoch_samples=64)
    assert mixture.epoch_samples == mixture.make_plan(seed=1).epoch_samples == 64


def test_the_plan_has_the_order_settings_of_the_configuration(root: Path) -> None:
    order = {"lanes": 3, "window": 2, "shuffle": "full"}
    plan = load(root, "concat", [{"name": "photos"}], order=order).make_plan(seed=9)
    assert plan.order.model_dump() == order
    assert (plan.seed, plan.segment.start) == (9, 0)


def test_a_configuration_survives_being_saved(root: Path) -> None:
    config = data(root, "weighted", [{"name": "photos", "weight": 0.1}, {"name": "digits", "weight": "1e-8"}])
    assert parse(DataConfig, config.model_dump(mode="json"), "config.yaml") == config


def test_a_source_that_is_not_built_is_named_with_what_is_and_the_command(root: Path) -> None:
    with pytest.raises(InputError) as error:
        load(root, "concat", [{"name": "photos"}, {"name": "cifar10"}])
    said = str(error.value)
    assert said.startswith(f"mix.yaml: {root}/cifar10/train/manifest.json expected")
    assert "digits/test, digits/train, photos/train" in said
    assert f"`hjepa-shards build cifar10 --split train --raw DIR --out {root}`" in said
    with pytest.raises(InputError, match=r"did you mean photos/train\?"):
        load(root, "concat", [{"name": "photo"}])
    with pytest.raises(InputError, match=r"`hjepa-shards build digits --split val --out "):
        load(root, "concat", [{"name": "digits", "split": "val"}])
    with pytest.raises(InputError, match=r"built under .*/nowhere: nothing"):
        load(root / "nowhere", "concat", [{"name": "photos"}])


def test_a_source_without_samples_is_refused(root: Path) -> None:
    save_stand_in(root, "empty", [0])
    with pytest.raises(InputError, match=r"mix\.yaml: empty has no samples"):
        load(root, "balanced", [{"name": "photos"}, {"name": "empty"}])


@pytest.mark.parametrize(
    ("strategy", "sources", "said"),
    [
        ("weighted", [{"name": "a", "weight": 1}, {"name": "b"}], "needs a weight for b"),
        ("balanced", [{"name": "a", "weight": 1}], "takes no weights, some found for a"),
        ("concat", [{"name": "a", "weight": 1}], "takes no weights"),
        (
            "weighted",
            [{"name": "a", "weight": -1}],
            r"sources\.0\.weight: a number of at least 0, .* expected, -1 found$",
        ),
        ("weighted", [{"name": "a", "weight": 0}, {"name": "b", "weight": 0.0}], "at least one above 0"),
        ("weighted", [{"name": "a", "weight": 1}, {"name": "b", "weight": 1e-10}], r"less than 2\^31"),
        ("weighted", [{"name": "a", "weight": [0.1, 0.9]}], r"weight: a number .* by epoch .* expected$"),
        ("weighted", [{"name": "a", "weight": True}], "expected, True found"),
        ("weighted", [{"name": "a", "wieght": 1}], r"unknown key `sources\.0\.wieght`; did you mean `weight`"),
        ("concat", [{"name": "a"}, {"name": "a"}], r"two sources are called a; .*`entry: <name>`"),
        ("concat", [{"name": "a-test"}, {"name": "a", "split": "test"}], "two sources are called a-test"),
        ("concat", [{"name": "../a"}], r"sources\.0\.name"),
        ("concat", [], "sources"),
        ("random", [{"name": "a"}], "strategy"),
    ],
)
def test_a_mixture_that_means_nothing_is_refused(
    tmp_path: Path, strategy: str, sources: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        data(tmp_path, strategy, sources)


def test_a_file_is_the_data_section_or_holds_it(root: Path) -> None:
    section = (
        f"root: {root}\nstrategy: weighted\nsources: [{{name: photos, weight: .6}}, {{name: digits, weight: .4}}]\n"
    )
    indented = section.replace("\n", "\n  ").rstrip()
    (root / "mix.yaml").write_text(section)
    (root / "run.yaml").write_text(f"seed: 3\ndata:\n  {indented}\n")
    for name in ("mix.yaml", "run.yaml"):
        assert load_mixture_file(root / name).weights == (2, 3)
    (root / "mix.yaml").write_text("root: x\nstrategie: concat\n")
    with pytest.raises(InputError, match=r"mix\.yaml: data: .*did you mean `strategy`"):
        load_mixture_file(root / "mix.yaml")
