"""Names of a package that are imported when they are used (PEP 562): `import hjepa_shards` costs nothing."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The package's `__getattr__`.  homes: module below the package -> the names it has, between spaces.

    `__version__` is the installed distribution's.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}

    def getattr_of_package(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("hjepa")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)

    return getattr_of_package
