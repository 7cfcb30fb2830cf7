"""Captions as datasets keep them: a text, or JSON with `caption` or `captions`."""

import json
import re
from collections.abc import Iterable
from typing import Any

from hjepa_shards.sources.base import Remarks

_LABELS = ("label", "cls", "class", "class_id", "class_name", "category", "category_id", "target")
_MAY_HAVE_A_LABEL = re.compile(rf'"(?:{"|".join(_LABELS)})"\s*:')


def captions_in(text: str, json_text: str, where: str, remarks: Remarks) -> tuple[str, ...]:
    """A sample's captions: its text, then those of its JSON (`captions`, else `caption`); '' for what is absent."""
    found = [text]
    if json_text:
        try:
            record = json.loads(json_text)
        except (ValueError, RecursionError):
            remarks.add("samples whose .json is no JSON, read without its captions", where)
        else:
            if isinstance(record, dict):
                found += texts_of(record.get("captions", record.get("caption")))
    return distinct(found)


def texts_of(value: Any) -> list[str]:
    """The texts in a JSON value: one, or a list of them."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """Each text once, in order, without space around it; empty ones dropped."""
    # JSON may hold halves of surrogate pairs, which no file can
    cleaned = (text.encode("utf-8", "replace").decode().strip() for text in texts)
    return tuple(dict.fromkeys(text for text in cleaned if text))


def label_in(json_text: str) -> str:
    """What a sample's JSON says of its class, for a note, as `key value`; '' where it says nothing."""
    if not _MAY_HAVE_A_LABEL.search(json_text):
        return ""
    try:
        record = json.loads(json_text)
    except (ValueError, RecursionError):
        return ""
    found = record if isinstance(record, dict) else {}
    return next((f"{key} {found[key]!a:.40}" for key in _LABELS if isinstance(found.get(key), int | str)), "")
