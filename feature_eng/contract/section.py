"""What every section of a contract is: checked settings that later additions do not change."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, model_serializer

from foundation.settings import Settings


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
