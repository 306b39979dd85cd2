"""What SageMaker's API takes, by the model that botocore ships. Unlike botocore this sees enumerations, patterns and
upper limits, as AWS does."""

import datetime
import re
import unicodedata
from functools import cache
from typing import Any

import botocore.session
from botocore.model import Shape

TYPES: dict[str, type[Any] | tuple[type[Any], ...]] = {
    "structure": dict,
    "map": dict,
    "list": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "long": int,
    "float": (int, float),
    "double": (int, float),
    "blob": (str, bytes),
    "timestamp": datetime.datetime,
}
_NUMBERS = ("integer", "long", "float", "double")


@cache
def shape_of(operation: str) -> Shape:
    """What an operation takes."""
    return botocore.session.get_session().get_service_model("sagemaker").operation_model(operation).input_shape


def faults_of(operation: str, request: dict[str, Any]) -> list[str]:
    """Where a request breaks the model."""
    return faults(request, shape_of(operation))


def faults(value: Any, shape: Shape, path: str = "") -> list[str]:
    """Where a value breaks the model of its shape."""
    kind = shape.type_name
    if not isinstance(value, TYPES[kind]) or (kind in _NUMBERS and isinstance(value, bool)):
        return [f"{path} is no {kind}"]
    if kind == "structure":
        found = [f"{path}.{name} is missing" for name in shape.required_members if name not in value]
        found += [f"{path}.{name} is unknown" for name in value if name not in shape.members]
        for name in value.keys() & shape.members.keys():
            found += faults(value[name], shape.members[name], f"{path}.{name}")
        return found
    found = []
    if kind in ("list", "map", "string", *_NUMBERS):
        low, high = shape.metadata.get("min", 0), shape.metadata.get("max", float("inf"))
        size, what = (value, "value") if kind in _NUMBERS else (len(value), "length")
        found += [] if low <= size <= high else [f"{path} has {what} {size}, not {low} to {high}"]
    if kind == "list":
        for i, member in enumerate(value):
            found += faults(member, shape.member, f"{path}[{i}]")
    if kind == "map":
        for name, member in value.items():
            found += faults(name, shape.key, f"{path} key {name!r}")
            found += faults(member, shape.value, f"{path}[{name!r}]")
    if "enum" in shape.metadata and value not in shape.metadata["enum"]:
        found.append(f"{path} is {value!r}, which the enumeration lacks")
    if "pattern" in shape.metadata and not matches(shape.metadata["pattern"], value):
        found.append(f"{path} does not match {shape.metadata['pattern']}")
    return found


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern of the model covers the text; `re` lacks Unicode's categories, which some are made of."""
    if r"\p" not in pattern:
        return re.fullmatch(pattern, text) is not None
    assert re.fullmatch(r"\[(\\p\{\w\})+\]\*", pattern)
    return {unicodedata.category(character)[0] for character in text} <= set(re.findall(r"\{(\w)\}", pattern))
