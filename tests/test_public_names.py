"""What users import: few names, each where it says, each with a docstring that helps."""

import ast
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("hjepa_shards", "hjepa_train")
MOST_NAMES = 35


@pytest.mark.parametrize("package", PACKAGES)
def test_there_are_few_names_and_the_three_lists_of_them_agree(package: str) -> None:
    top = importlib.import_module(package)
    assert len(top.__all__) <= MOST_NAMES
    homes = {name: module for module, names in top._HOMES.items() for name in names.split()}
    assert sorted(homes) == sorted(top.__all__)
    [for_checkers] = [node for node in ast.parse(Path(str(top.__file__)).read_text()).body if isinstance(node, ast.If)]
    imports = [node for node in for_checkers.body if isinstance(node, ast.ImportFrom)]
    assert homes == {
        alias.name: str(node.module).removeprefix(f"{package}.") for node in imports for alias in node.names
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_each_name_is_what_its_module_defines(package: str) -> None:
    top = importlib.import_module(package)
    for module, names in top._HOMES.items():
        home = importlib.import_module(f"{package}.{module}")
        for name in names.split():
            value = getattr(top, name)
            assert value is getattr(home, name)
            assert getattr(value, "__module__", home.__name__) == home.__name__, f"{name} is imported there too"
    assert top.__version__ == importlib.metadata.version("hjepa")
    assert set(dir(top)) == {*top.__all__, "__version__"}, "what a notebook completes"
    with pytest.raises(AttributeError, match="no attribute 'bulid'"):
        _ = top.bulid


@pytest.mark.parametrize("package", PACKAGES)
def test_to_import_a_package_loads_nothing(package: str) -> None:
    code = f"import sys, {package}; sys.exit(any(name in sys.modules for name in ('numpy', 'pydantic', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def public_functions() -> list[tuple[str, Callable[..., object]]]:
    """And the methods of public classes."""
    tops = {package: importlib.import_module(package) for package in PACKAGES}
    every = [(f"{package}.{name}", getattr(top, name)) for package, top in tops.items() for name in top.__all__]
    every += [
        (f"{name}.{method}", value)
        for name, owner in every
        if inspect.isclass(owner)
        for method, value in vars(owner).items()
        if not method.startswith("_")
    ]
    return [(name, value) for name, value in every if inspect.isfunction(value)]


@pytest.mark.parametrize(("name", "function"), public_functions(), ids=[name for name, _ in public_functions()])
def test_every_public_function_says_what_goes_in_and_what_goes_wrong(
    name: str, function: Callable[..., object]
) -> None:
    """Each parameter by its name, the errors by their types or that there are none."""
    said = inspect.getdoc(function) or ""
    assert said, f"{name}: no docstring"
    words = set(re.findall(r"\w+", said))
    parameters = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
    assert [parameter for parameter in parameters if parameter not in words] == [], name
    if name.count(".") == 1:
        assert re.search(r"\b\w+(Error|Mismatch|Damage|Truncated)\b|[Rr]aises nothing", said), f"{name}: which errors?"
