"""YAML and JSON from outside: plain values only, and one kind of error whatever the text does.

A few lines of YAML with aliases expand to gigabytes, brackets without end exhaust the stack, and an impossible date is
an error of another library. Whoever reads a file of a stranger reads it by these two functions.
"""

import json
from collections import Counter
from collections.abc import Hashable
from typing import Any

import yaml

__all__ = ["MAX_TEXT_BYTES", "plain_json", "plain_yaml"]

MAX_TEXT_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """Plain YAML: no aliases, no repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        counted = Counter(key for key in keys if isinstance(key, Hashable))
        repeated = sorted(str(key) for key, count in counted.items() if count > 1)
        if repeated:
            raise yaml.YAMLError(f"repeated keys: {', '.join(repeated)}")
        return super().construct_mapping(node, deep=deep)


def plain_yaml(text: bytes | str) -> Any:
    """The values of a YAML document.

    Raises:
        ValueError: Not YAML, with aliases or repeated keys, nested without end, or larger than `MAX_TEXT_BYTES`; its
            text is one line and quotes nothing but a key.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError("too large")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (_Loader is a SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        reason = str(getattr(error, "problem", None) or error or type(error).__name__)
        raise ValueError(reason.splitlines()[0][:200]) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def plain_json(text: bytes | str) -> Any:
    """The values of a JSON document of any size.

    Raises:
        ValueError: Not JSON in UTF-8, or nested without end.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
