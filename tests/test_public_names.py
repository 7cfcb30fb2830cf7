"""What users import: few names, each where it says, each with a docstring that helps."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
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
    with pytest.raises(AttributeError, match="no attribute 'bulid'"):
        _ = top.bulid


@pytest.mark.parametrize("package", PACKAGES)
def test_to_import_a_package_loads_nothing(package: str) -> None:
    code = f"import sys, {package}; sys.exit(any(name in sys.modules for name in ('numpy', 'pydantic', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
