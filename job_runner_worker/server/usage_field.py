"""What a run has used, as its worker says it and as it is shown."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from job_runner_worker.models import Usage

USED = tuple(each.name for each in fields(Usage))
_TOO_MUCH = 2**63


@extend_schema_field(
    {
        "type": "object",
        "nullable": True,
        "properties": {name: {"type": "number", "nullable": True} for name in USED},
    }
)
class Used(serializers.Field):
    """What a run has used, as its worker knows it; what else is said is left out."""

    def to_internal_value(self, data: Any) -> dict[str, float | None]:
        """See serializers.Field."""
        if not isinstance(data, dict):
            raise serializers.ValidationError(f"an object with {', '.join(USED)}")
        return {name: _number(data.get(name)) for name in USED}

    def to_representation(self, value: Any) -> Any:
        """See serializers.Field."""
        return value


def _number(data: Any) -> float | None:
    """Return a number of JSON, None for what is not known: NaN is none for databases.

    No end of a run is refused for this.
    """
    is_number = type(data) in (int, float)
    return data if is_number and abs(data) < _TOO_MUCH else None
