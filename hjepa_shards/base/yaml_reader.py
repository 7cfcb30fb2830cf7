"""YAML that a user wrote, as plain values: what no configuration needs is refused before it costs time or memory.

PyYAML's own loader takes the second of two equal keys without a word, writes aliases out as often as they are named
(nine lines can name a billion values), recurses into any depth, and turns digits into integers in quadratic time. Here
each of them is an error that says where.
"""

from typing import Any, final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from hjepa_shards.errors import InputError

MOST_BYTES = 2**18
"""Of a file."""
_MOST_VALUES = 20_000
"""With aliases written out."""
_MOST_LEVELS = 32
_MOST_DIGITS = 64
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def values_of(text: str, where: str) -> Any:
    """The value that a YAML document holds.  where: what errors call it. InputError for whatever is wrong with it."""
    if len(text) > MOST_BYTES:
        raise InputError(f"{where}: at most {MOST_BYTES:,} characters expected, {len(text):,} found")
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.YAMLError as error:
        said = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise InputError(f"{where}: not YAML: {said[:400]}") from error
    except _Refused as error:
        raise InputError(f"{where}, line {error.line}: {error.what}") from error


class _Refused(Exception):
    """YAML, but not for a configuration."""

    def __init__(self, node: Any, what: str) -> None:
        """node: or an event; whatever has a `start_mark`."""
        super().__init__(what)
        self.line = node.start_mark.line + 1
        self.what = what


@final
class _Loader(yaml.SafeLoader):
    """Plain values only, each key once, everything bounded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._level = 0
        self._values_in: dict[int, int] = {}
        """By a node's `id`: of it and all below it, aliases written out."""

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        before = self._values
        self._values += 1
        self._level += 1
        if isinstance(event, yaml.AliasEvent):
            known = self.anchors.get(event.anchor)
            if known is not None:
                if id(known) not in self._values_in:
                    raise _Refused(event, f"*{event.anchor} holds itself; write the values out")
                self._values += self._values_in[id(known)]
        if self._values > _MOST_VALUES:
            raise _Refused(event, f"at most {_MOST_VALUES:,} values expected, aliases written out, more found")
        if self._level > _MOST_LEVELS:
            raise _Refused(event, f"at most {_MOST_LEVELS} levels of values in values expected, more found")
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is not None:
            self._values_in.setdefault(id(node), self._values - before)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, ScalarNode):
                raise _Refused(key_node, "a word or a number expected as a key, values in values found")
            key = self.construct_object(key_node) if key_node.value != "<<" else "<<"
            if key in keys:
                raise _Refused(key_node, f"the key `{key}` is there twice; remove one of them")
            keys.add(key)
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if not isinstance(node, ScalarNode):
            return super().construct_object(node, deep)
        if node.tag in _NUMBERS and len(node.value) > _MOST_DIGITS:
            raise _Refused(node, f"a number of at most {_MOST_DIGITS} digits expected, {len(node.value):,} found")
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
        ) as error:  # PyYAML lets int() and date() speak
            kind = node.tag.rpartition(":")[2].replace("timestamp", "date")
            raise _Refused(
                node, f"a value of the kind `{kind}` expected, {node.value[:40]!r} found; put a text in quotes"
            ) from error
