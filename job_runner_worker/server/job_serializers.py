"""What people may say of jobs beyond the fields of an original server."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from job_runner_worker.server.serializers import (
    Date,
    JobSerializer,
    Text,
    Whole,
    YesNo,
)
from job_runner_worker.server.validators import check_cron_expression, check_time_zone


class ExcludedTimes(serializers.Serializer):
    """Times of day at which a job is not due, both included."""

    start_time = serializers.TimeField()
    end_time = serializers.TimeField()
    note = Text(default="", allow_blank=True, max_length=255)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Ask for both times in a PATCH, too."""
        for name in ("start_time", "end_time"):
            if name not in attrs:
                raise serializers.ValidationError({name: ["is missing"]})
        return attrs


class PersonsJobSerializer(JobSerializer):
    """A job as people see it, with fields of ours; workers see an original server's."""

    cron_expression = Text(
        default="",
        allow_blank=True,
        max_length=255,
        validators=[check_cron_expression],
    )
    schedule_start_dts = Date(required=False)
    time_zone = Text(
        default="",
        allow_blank=True,
        max_length=64,
        validators=[check_time_zone],
    )
    excluded_times = ExcludedTimes(many=True, source="excluded", required=False)
    fail_times = Whole(read_only=True)
    schedule_error = Text(read_only=True)


class Switch(serializers.Serializer):
    """Whether something is enabled."""

    enqueue_is_enabled = YesNo(required=False)
