"""YAML: each key once, everything bounded, and one line about whatever is wrong."""

import time

import pytest

from hjepa_shards.base.yaml_reader import values_of
from hjepa_shards.errors import InputError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "line 5: at most 20,000 values expected, aliases written out"),
        ("a: &a [*a]", "line 1: .a holds itself"),
        ("[" * 5000, "at most 32 levels"),
        ("{a: " * 5000, "at most 32 levels"),
        ("- " * 5000, "at most 32 levels"),
        ("a: 1\nb: 2\na: 3", "line 3: the key `a` is there twice"),
        ("{0: 1, 0.0: 2}", "twice"),
        ("a: {b: 1, b: 1}", "the key `b` is there twice"),
        ("<<: {a: 1}\n<<: {b: 1}", "twice"),
        ("? [1]\n: 2", "a word or a number expected as a key"),
        ("a:\n\t- b", "cannot start any token"),
        ("a: " + ":".join("1" * 50_000), "a number of at most 64 digits"),
        ("a: " + "9" * 5000, "a number of at most 64 digits expected, 5,000 found"),
        ("a: 2021-02-31", "a value of the kind `date` expected, '2021-02-31' found"),
        ("a: 0b_", "`int`"),
        ("a: !!int abc", "`int`"),
        ("a: !!int ''", "`int`"),
        ("a: !!float ''", "`float`"),
        ("a: !!bool x", "`bool`"),
        ("a: !!timestamp x", "`date`"),
        ("a: !!python/object:os.system x", "not YAML"),
        ("a: *b", "undefined alias"),
        ("--- a\n--- b", "a single document"),
        ("#" * 2**18 + "\n", "at most 262,144 characters"),
    ],
    ids=lambda text: text[:20],
)
def test_what_no_configuration_needs_is_refused_at_once_in_one_line(text: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=said) as caught:
        values_of(text, "x.yaml")
    assert time.monotonic() - began < 5
    assert str(caught.value).startswith("x.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_aliases_and_merged_keys_mean_what_they_mean_in_yaml() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}\nd: [*a, *a]\n"
    ones = {"x": 1, "y": 2}
    assert values_of(text, "x.yaml") == {"a": ones, "b": {"x": 3, "y": 2}, "c": ones, "d": [ones, ones]}


def test_plain_values_are_those_of_pyyaml() -> None:
    text = "\ufeffa: 1\nb: [1.5, .nan, yes, ~, 1e-4, 0x10, 2021-01-02]\n'c': \"\\e[31m\"\n0: {1: x}\n"
    values = values_of(text, "x.yaml")
    assert [values["a"], values["c"], values[0]] == [1, "\x1b[31m", {1: "x"}]
    assert [str(value) for value in values["b"]] == ["1.5", "nan", "True", "None", "1e-4", "16", "2021-01-02"]
