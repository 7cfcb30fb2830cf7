"""What a user writes: YAML read into models that refuse what they do not know.

Every configuration is a `Strict` model standing beside what it configures. An unknown key is an error that names the
nearest known one; nothing is silently ignored.
"""

import copy
import difflib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from hjepa_shards.base.yaml_reader import MOST_BYTES, values_of
from hjepa_shards.errors import InputError


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Strict)


def expanded(location: str) -> str:
    """A path or URL as the shell would have made it: a leading ~, $HOME and other variables written out."""
    return os.path.expanduser(os.path.expandvars(location))


def _expanded_path(path: Path) -> Path:
    return Path(expanded(str(path)))


Location = Annotated[str, AfterValidator(expanded)]
"""A path or URL in a configuration."""
LocalPath = Annotated[Path, AfterValidator(_expanded_path)]
"""A path on this machine in a configuration."""


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. InputError if it is missing, no plain file, not YAML, or not a mapping."""
    try:
        text = _plain_file(path).decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a text in UTF-8 expected: {error}; save it in that encoding") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    content = values_of(text, str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: a mapping of keys expected, {type(content).__name__} found")
    return content


def _plain_file(path: Path) -> bytes:
    """All of it; of a pipe or a device, which may never end, nothing."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise InputError(f"{path}: a YAML file expected, {kind} found")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise InputError(f"{path}: a YAML file of at most {MOST_BYTES:,} bytes expected, a larger one found")
    return data


def overridden(content: dict[str, Any], changes: Sequence[str], where: str) -> dict[str, Any]:
    """A copy of `content` with values from `key.key=value`, as on a command line; the value is YAML.

    where: what to call the content in errors. Keys need not be there yet; wrong ones are for `parse` to refuse.
    """
    content = copy.deepcopy(content)
    for change in changes:
        path, equals, text = change.partition("=")
        *way, last = path.split(".")
        if not equals or "" in (*way, last):
            raise InputError(f"--set {change}: a key and a value expected, such as training.lr=1e-4")
        try:
            value = values_of(text, f"--set {change}")
        except InputError as error:
            raise InputError(f"{error}; a YAML value expected, such as training.lr=1e-4") from error
        node: Any = content
        for key in way:
            node = _item(node, key, change, where)
        if isinstance(node, list):
            _item(node, last, change, where)
            node[int(last)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise InputError(f"--set {change}: {where} has no keys below {'.'.join(way)}, which is {node!r}")
    return content


def _item(node: Any, key: str, change: str, where: str) -> Any:
    """What is at a key of a mapping, made where it is missing, or at an index of a list."""
    if isinstance(node, dict):
        if node.get(key) is None:
            node[key] = {}
        return node[key]
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return node[int(key)]
    found = f"a list of {len(node)}" if isinstance(node, list) else repr(node)
    raise InputError(f"--set {change}: {key} is nothing in {where}: {found} is there")


def parse(model: type[Model], content: dict[str, Any], where: str) -> Model:
    """`content` as a `model`. InputError naming every wrong key, with the nearest known one.

    where: what to call the content in errors, usually the file it came from.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_explain(model, detail) for detail in error.errors(include_url=False)]
        raise InputError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from error


def first_problem(error: ValidationError) -> str:
    """Where the first wrong value of a file that programs write is, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))[:200] or "the whole"
    return f"{where}: {first['msg']}"


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys: {"a": {"b": 1}} is {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def brief(value: Any) -> str:
    """A value as an error shows it; of a long one the beginning."""
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."


def _explain(model: type[BaseModel], detail: Any) -> str:
    location = [part for part in detail["loc"] if isinstance(part, str | int)]
    path = ".".join(str(part) for part in location)
    if detail["type"] != "extra_forbidden":
        found = detail.get("input")
        shown = "" if isinstance(found, dict | list) else f", {brief(found)} found"
        where = f"{path}: " if path else ""
        message = detail["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
        return f"{where}{message}{shown}"
    known = _known_keys(model, location[:-1])
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    advice = f"did you mean `{nearest[0]}`?" if nearest else f"known here: {', '.join(sorted(known))}"
    return f"unknown key `{path}`; {advice}"


def _known_keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    """The keys of the model found by walking `location` from `model`."""
    models = [model]
    for part in location:
        fields = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        if fields:
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return sorted({key for m in models for key in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
