"""Messages of admin.proto as plain values, for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def message_dict(message: Any, convert: dict[str, Callable[[Any], Any]] | None = None) -> dict[str, Any]:
    """Returns a protobuf message as a dictionary with every field, under its name in admin.proto; 64-bit numbers stay numbers.

    `convert` is applied to the values of the fields that it names.
    """
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = dict(sorted(value.items()))
        elif field.is_repeated:
            value = [message_dict(item) if field.message_type is not None else item for item in value]
        elif field.message_type is not None:
            value = message_dict(value)
        if convert and field.name in convert:
            value = convert[field.name](value)
        fields[field.name] = value
    return fields
