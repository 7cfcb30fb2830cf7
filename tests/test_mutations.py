"""The list of tools/mutate.py fits this code: running it takes minutes, this does not."""

import pytest

from tools.mutate import HERE, Mutation, place_of, read_mutations

MUTATIONS = read_mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_still_applies_and_its_tests_are_there(mutation: Mutation) -> None:
    path = place_of(mutation, HERE)
    compile(path.read_text(encoding="utf-8").replace(mutation.old, mutation.new), str(path), "exec")
    for test in mutation.tests:
        file, _, function = test.partition("::")
        assert (HERE / file).exists()
        assert not function or f"def {function}(" in (HERE / file).read_text(encoding="utf-8")


def test_both_packages_are_mutated_in_forty_places_or_more() -> None:
    assert len(MUTATIONS) >= 40
    for package in ("hjepa_shards", "hjepa_train"):
        assert len({mutation.file for mutation in MUTATIONS if mutation.file.startswith(package)}) >= 10
