"""Checks of single values: by the spec of their key, or else by the type of its default."""

import math
from typing import Any

from tricklab.cli.grammar import Alternative, Range, Spec
from tricklab.duration import parse
from tricklab.errors import UserError, nearest

LARGEST = 2**31 - 1  # of an integer without a range that ends
TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "bool": (bool,),
    "list": (list,),
    "pair": (list,),
    "dict": (dict,),
}


def check_value(key: str, value: Any, default: Any, spec: Spec | None = None) -> None:
    """Raise UserError: the value is not of the key's type, or out of its range.

    Args:
        key: the dotted key, for messages.
        value: a plain value or a list of these.
        default: the value in the key's YAML, whose type counts where the spec has none.
        spec: the spec in the key's comment; None if it has none.
    """
    alternatives = complete(spec or Spec(), default)
    is_nullable = spec.nullable if spec and spec.alternatives else default is None
    if value is None and is_nullable:
        return
    check_finite(key, value, alternatives)
    if value == "" != default and not key.startswith("logger."):  # as from KEY=$UNSET
        raise UserError(f"{key}= is empty; expected a value")
    if key == "trainer.devices":
        check_devices(value)
    if alternatives and not any(accepts(alternative, value) for alternative in alternatives):
        raise UserError(f"{key}={explain(key, value, alternatives)}")


def complete(spec: Spec, default: Any) -> list[Alternative]:
    """Return the alternatives of a spec with the types that the default gives them."""
    is_list = isinstance(default, list)
    example = default[0] if is_list and default else default
    kind = type(example).__name__
    if not spec.alternatives:
        return [] if default is None else [Alternative(kind, each=is_list and bool(default))]
    completed = []
    for alternative in spec.alternatives:
        if not alternative.kind:
            alternative = alternative._replace(kind=kind if kind in ("int", "float") else "float")
        each = is_list and alternative.kind not in ("null", "[]", "list", "pair")
        completed.append(alternative._replace(each=each))
    return completed


def accepts(alternative: Alternative, value: Any) -> bool:
    """Whether an alternative has the type of a value, and the value in its range."""
    if alternative.each:
        one = alternative._replace(each=False)
        return isinstance(value, list) and value != [] and all(accepts(one, v) for v in value)
    if alternative.kind == "duration":
        return is_duration(value, alternative.range)
    if not has_type(alternative, value):
        return False
    if alternative.kind == "choice":
        return str(value) in alternative.choices
    numbers = value if isinstance(value, list) else [value]
    return alternative.range is None or all(number in alternative.range for number in numbers)


def has_type(alternative: Alternative, value: Any) -> bool:
    """Whether a value is of the type of an alternative; a range may still exclude it."""
    if alternative.kind in ("null", "[]"):
        return value is None if alternative.kind == "null" else value == []
    if alternative.kind == "choice":
        return True  # choices are compared as text
    if alternative.kind == "pair" or (alternative.kind == "list" and alternative.range):
        is_list = isinstance(value, list) and all(same_type(v, TYPES["float"]) for v in value)
        return is_list and (alternative.kind == "list" or len(value) == 2)
    return same_type(value, TYPES.get(alternative.kind, ()))


def same_type(value: Any, types: tuple[type, ...]) -> bool:
    """Whether a value is of one of the types; a bool is no int."""
    return type(value) in types


def is_duration(value: Any, limits: Range | None) -> bool:
    try:
        number, unit = parse(value)
    except UserError:
        return False
    return (unit != "%" or number <= 100) and (limits is None or number in limits)


def explain(key: str, value: Any, alternatives: list[Alternative]) -> str:
    """Return the value with the reason why no alternative accepts it."""
    if any(alternative.kind == "duration" for alternative in alternatives):
        return explain_duration(key, value, alternatives)
    in_list = isinstance(value, list) and any(alternative.each for alternative in alternatives)
    parts = value if in_list else [value]
    candidates = [alternative for alternative in alternatives if alternative.each == in_list]
    if parts and all(any(has_type(a, part) for a in candidates) for part in parts):
        return f"{show(value)}; allowed: {list_allowed(value, alternatives)}"
    if in_list:
        return f"{value}: expected {describe_list(alternatives)}"
    types = [describe_type(a) for a in alternatives if a.kind != "[]"]
    expected = " or ".join(dict.fromkeys(types))
    found = "null" if value is None else type(value).__name__
    return f"{show(value)}: expected {expected}, got {found}"


def list_allowed(value: Any, alternatives: list[Alternative]) -> str:
    """Return the ranges and choices of the alternatives, with the choice nearest to the value."""
    alternatives = [alternative for alternative in alternatives if alternative.kind != "[]"]
    has_several_types = len([a for a in alternatives if a.kind != "null"]) > 1
    allowed = []
    for alternative in alternatives:
        allowed.append(describe_values(alternative))
        if has_several_types and alternative.kind == "int" and alternative.range:
            allowed[-1] = f"an int of {allowed[-1]}"
    choices = [choice for alternative in alternatives for choice in alternative.choices]
    hint = f".{nearest(str(value), choices)}" if choices else ""
    return ", or ".join(allowed) + hint


def describe_values(alternative: Alternative) -> str:
    if alternative.kind == "list" and alternative.range:
        return f"a list of numbers, each {alternative.range}"
    if alternative.range:
        return str(alternative.range)
    return ", ".join(alternative.choices) or describe_type(alternative)


def describe_type(alternative: Alternative) -> str:
    if alternative.each:
        return "list"
    if alternative.kind == "pair":
        return "two numbers"
    return ", ".join(alternative.choices) or alternative.kind


def describe_list(alternatives: list[Alternative]) -> str:
    kinds = [alternative.kind for alternative in alternatives if alternative.kind != "[]"]
    length = "non-empty " if len(kinds) == len(alternatives) else ""
    return f"a {length}list of {' or '.join(kinds)}"


def explain_duration(key: str, value: Any, alternatives: list[Alternative]) -> str:
    """Return the reason why a value is no duration, or none that is allowed."""
    duration = next(a for a in alternatives if a.kind == "duration")
    if isinstance(value, list) != duration.each or value == []:
        a_list = "a list of durations, as [50%,75%]"
        return f"{value}: expected {a_list if duration.each else 'one duration, as 10%'}"
    for part in value if isinstance(value, list) else [value]:
        number, unit = parse(part, f"{key}=")
        if unit == "%" and number > 100:
            return f"{value}; allowed: 0% to 100%"
    return f"{value}; allowed: {duration.range}"


def check_finite(key: str, value: Any, alternatives: list[Alternative]) -> None:
    """Refuse NaN and infinities, at any depth, and integers that no library could take."""
    if isinstance(value, list):
        for part in value:
            check_finite(key, part, alternatives)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: expected a finite number")
    ends = [alternative.range.high for alternative in alternatives if alternative.range]
    is_bounded = ends and max(ends) < math.inf  # then the range answers
    if isinstance(value, int) and abs(value) > LARGEST and not is_bounded:
        raise UserError(f"{key}={value}; allowed: integers up to {LARGEST}")


def check_devices(value: Any) -> None:
    """Raise UserError: neither a number of devices (-1 and auto: all) nor a list of them."""
    is_count = type(value) is int and (value == -1 or value > 0)
    listed = value if isinstance(value, list) else str(value).split(",")
    is_list = value and type(value) in (list, str) and all(str(n).isdecimal() for n in listed)
    if value != "auto" and not is_count and not is_list:
        expected = "a number, auto for all, or a list, as [0,1]"
        raise UserError(f"trainer.devices={show(value)}: expected {expected}")


def show(value: Any) -> str:
    """Return a value as it would be typed."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
