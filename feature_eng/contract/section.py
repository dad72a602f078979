"""What every section of a contract is: checked settings that later additions do not change."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from foundation.settings import Settings


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
"""A name, or a list of them."""


class Section(Settings):
    """Base of the sections of a contract.

    A contract's fingerprint is taken of its content. Settings that came later stand in
    ``later`` and are left out of the content while they have their default, so that tables
    and models made before know their contract again.
    """

    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_defaults_of_later_settings(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        for name in self.later:
            if getattr(self, name) == fields[name].default:
                content.pop(fields[name].alias or name, None)
                content.pop(name, None)
        return content
