"""docs/config.md and docs/families.md, written from the models that check what a user writes.

python tools/document_config.py
"""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hjepa_shards.config import Strict
from hjepa_train.backbones import convnext, swin, tinyvit, vit
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.objectives.registry import OBJECTIVES
from hjepa_train.training.config import RunConfig
from hjepa_train.training.recipe_values import RECIPE_KEYS

DOCS = Path(__file__).resolve().parents[1] / "docs"
FAMILIES = {
    "vit": ("backbone", "Vision transformer", "the encoder of all objectives"),
    "deit": ("backbone", "DeiT", "a vision transformer that learns from a teacher too"),
    "convnext": ("backbone", "ConvNeXt", "convolutions: cheap on small images; whole images only"),
    "swin": ("backbone", "Swin", "attention in windows: cheap at high resolution; whole images only"),
    "tinyvit": ("backbone", "TinyViT", "fast inference, with a teacher best; whole images only"),
    "timm": ("backbone", "Any network of timm", "comparisons with networks that are not here; whole images only"),
    "hjepa": ("objective", "H-JEPA", "features without labels and without hand-made views; the default"),
    "mae": (
        "objective",
        "MAE",
        "features that fine-tune well; cheap steps, for the encoder sees a quarter of the patches",
    ),
    "simclr": ("objective", "SimCLR", "a contrastive baseline; wants two views and large batches"),
    "supervised": ("objective", "Supervised learning", "a classifier from labels; the measure of all backbones"),
}
SIZES = {
    "vit": tuple(vit.SIZES),
    "deit": ("tiny", "small", "base"),
    "convnext": tuple(convnext.SIZES),
    "swin": tuple(swin.SIZES),
    "tinyvit": tuple(tinyvit.SIZES),
}
_CONFIG_HEAD = """# Configuration: every key

One YAML file describes a run. An unknown key is refused with the nearest known one, and so is a value of the wrong type
or out of range. `--set section.key=value` changes a key on the command line; `hjepa-train run FILE --dry-run` checks
the whole file.
*(This page is written by `tools/document_config.py`.)*
"""
_FAMILIES_HEAD = """# Model families

Any objective trains any backbone that offers what it needs. Parameters are those of the encoder, in millions, on images
of 224 pixels. The product trains encoders and classifiers; it does not generate images.
*(This page is written by `tools/document_config.py`.)*
"""

_RECIPES_HEAD = """## Recipes

A key of `training` that a file leaves out has the value of its objective's recipe; `--dry-run` shows each with its
origin, and a run saves all of them. A warm-up is at most a tenth of the run.
"""

_ESCAPED = str.maketrans({"|": "\\|", "<": "&lt;"})
"""In a cell of a Markdown table."""


def main() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name below docs/ -> what is to be in it."""
    return {"config.md": config_page(), "families.md": families_page()}


def config_page() -> str:
    parts = [_CONFIG_HEAD]
    for section, field in RunConfig.model_fields.items():
        rooms = {"backbone": BACKBONES, "objective": OBJECTIVES}.get(section)
        if rooms is None:
            parts += tables(section, model_of(field.annotation))
            continue
        parts.append(f"## {section}\n\nExactly one, by its name: {', '.join(f'`{name}`' for name in rooms)}.\n")
        for name, (config, _) in rooms.items():
            parts += tables(f"{section}.{name}", config)
    return "\n".join(parts)


def tables(path: str, model: type[Strict]) -> Iterator[str]:
    """A table for the model's own keys, then one for each model inside it."""
    about, inner = docstrings(model), []
    doc = " ".join((vars(model).get("__doc__") or "").split())
    yield f"## {path}\n\n{doc}\n" if doc else f"## {path}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        nested = model_of(field.annotation)
        if nested is not None:
            inner.append((f"{path}.{name}", nested))
        default = "see below" if nested and not is_required(field) else shown(field)
        default = "the recipe's" if path == "training" and name in RECIPE_KEYS else default
        yield f"| `{name}` | {type_words(field)} | {default} | {about.get(name, '')} |"
    yield ""
    for inner_path, nested in inner:
        yield from tables(inner_path, nested)


def docstrings(model: type[Strict]) -> dict[str, str]:
    """Field -> the text below it, of the model and of those that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not (isinstance(owner, type) and issubclass(owner, Strict)) or owner is Strict:
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        body = definition.body
        for field, text in pairwise(body):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = " ".join(str(text.value.value).split()).translate(_ESCAPED)
    return found


def model_of(annotation: Any) -> type[Strict] | None:
    """The model in an annotation, also in a tuple of them or where None is allowed."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_of(part))), None)


def is_required(field: FieldInfo) -> bool:
    return field.default is PydanticUndefined and field.default_factory is None


def shown(field: FieldInfo) -> str:
    if is_required(field):
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, tuple):
        value = [round(part, 4) for part in value]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def type_words(field: FieldInfo) -> str:
    """The type as a YAML author sees it, and its bounds."""
    names = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, key)}" for rule in field.metadata for key, sign in names.items() if hasattr(rule, key)
    ]
    return ", ".join([words(field.annotation), *bounds]).replace("|", "\\|")


def words(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return words(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(words(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) in (tuple, list):
        return f"list of {words(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"mapping of {words(get_args(annotation)[0])} to {words(get_args(annotation)[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return "section"
    names = {Any: "anything", int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def families_page() -> str:
    rows = ["| family | kind | YAML | parameters, millions | what for |", "|---|---|---|---|---|"]
    for name, (kind, title, use) in FAMILIES.items():
        yaml = f"`{kind}: {{{name}: ...}}`"
        sizes = ", ".join(f"{size} {parameters(name, size):.1f}" for size in SIZES.get(name, ()))
        rows.append(f"| [{title}](families/{name}.md) | {kind} | {yaml} | {sizes or '-'} | {use} |")
    return "\n".join([_FAMILIES_HEAD, *rows, "", _RECIPES_HEAD, *recipe_rows(), ""])


def recipe_rows() -> Iterator[str]:
    """What each objective uses for keys of `training` that a file leaves out."""
    yield "| objective | recipe | lr | schedule, end | warm-up, epochs | betas | weight decay | clip | source |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, (_, objective) in OBJECTIVES.items():
        for backbone, recipe in {"": objective.recipe, **objective.recipes_by_backbone}.items():
            lr = recipe.lr if recipe.lr_per_256 is None else f"{recipe.lr_per_256:g} for 256 images"
            warmup = "a tenth" if recipe.warmup_epochs is None else f"{recipe.warmup_epochs:g}"
            clip = "none" if recipe.clip_norm is None else f"{recipe.clip_norm:g}"
            betas = ", ".join(map(str, recipe.betas))
            of = f"`{name}`" + f" with `{backbone}`" * bool(backbone)
            yield (
                f"| {of} | {recipe.name} | {lr} | {recipe.schedule}, {recipe.min_lr:g} | {warmup} | {betas} | "
                f"{recipe.weight_decay} | {clip} | {recipe.source} |"
            )


def parameters(name: str, size: str) -> float:
    """Of a backbone without a head, patches of 16 where it must be said, in millions; counted without making them."""
    config = BACKBONES[name][0]
    patch = {"patch": 16} if is_required(config.model_fields.get("patch", FieldInfo(default=None))) else {}
    with torch.device("meta"):
        backbone = build_backbone(name, config.model_validate({"size": size, **patch}), 224, seed=0)
    return sum(parameter.numel() for parameter in backbone.parameters()) / 1e6


if __name__ == "__main__":
    main()
