"""Rows to JSON objects and back, strictly: a value of the wrong type is refused.

The fields are those of an original server (recorded in vectors/). Dates differ: ours
have their offset ("2026-11-22T02:25:59.046521+00:00"); an original server's have none
and are in its own time zone, so that workers only ask whether they are null. Texts
lose what databases refuse: NUL and halves of characters become U+FFFD.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from job_runner_worker.server import validators
from job_runner_worker.server.models import (
    IntervalType,
    Job,
    JobTemplate,
    Run,
    Worker,
    WorkerPool,
)
from job_runner_worker.server.usage_field import Used

API_ROOT = "/api/v1/"
BATCH_URI = "/api/v1/batch/"
MAX_ID = 2**63 - 1
MAX_INTEGER = 2**31 - 1
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_URI = re.compile(re.escape(API_ROOT) + r"(\w+)/([0-9]{1,19})/")
_DATE_FORMAT = "YYYY-MM-DD HH:MM[:ss[.uuuuuu]][TZ]"


def uri_of(resource: str, row_id: int) -> str:
    """Return the name of a row in other rows."""
    return f"{API_ROOT}{resource}/{row_id}/"


class Whole(serializers.IntegerField):
    """A whole number, and no text that looks like one."""

    def to_internal_value(self, data: Any) -> int:
        """See serializers.Field."""
        if type(data) is not int:
            self.fail("invalid")
        return data


class YesNo(serializers.BooleanField):
    """True or false, and nothing else that might be taken for it."""

    def to_internal_value(self, data: Any) -> bool:
        """See serializers.Field."""
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class Text(serializers.CharField):
    """A text as it is, but for what a database refuses."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """See serializers.Field."""
        if isinstance(data, str):
            data = _UNSTORABLE.sub("\ufffd", data)
        elif data is not None and data is not serializers.empty:
            self.fail("invalid")
        return super().run_validation(data)


class Date(serializers.DateTimeField):
    """A date in any form of ISO 8601; without an offset it is in UTC."""

    def to_internal_value(self, value: Any) -> datetime:
        """See serializers.Field."""
        if not isinstance(value, str):
            raise serializers.ValidationError(f"a date is a text: {_DATE_FORMAT}")
        try:
            date = datetime.fromisoformat(value)
            return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise serializers.ValidationError(
                f"'{value:.80}' value has an invalid format. It must be in "
                f"{_DATE_FORMAT} format."
            ) from None

    def to_representation(self, value: Any) -> str:
        """See serializers.Field."""
        return str(value.isoformat())


@extend_schema_field({"type": "string", "example": "/api/v1/job/3/"})
class Uri(serializers.RelatedField):
    """Another row, by its URI."""

    def __init__(self, resource: str, **options: Any) -> None:
        self.resource = resource
        super().__init__(**options)

    def use_pk_only_optimization(self) -> bool:
        """See serializers.RelatedField: the key is all that is shown."""
        return True

    def to_internal_value(self, data: Any) -> Any:
        """See serializers.Field."""
        if not isinstance(data, str):
            raise serializers.ValidationError(
                f"The '{self.field_name}' field was given data that was not a URI, not "
                f"a dictionary-alike and does not have a 'pk' attribute: {data!s:.80}."
            )
        match = _URI.fullmatch(data)
        row = None
        if match and match[1] == self.resource and int(match[2]) <= MAX_ID:
            rows = self.get_queryset().filter(pk=int(match[2])).order_by()
            row = next(iter(rows), None)
        if row is None:
            raise serializers.ValidationError(
                f"Could not find the provided object via resource URI '{data:.80}'."
            )
        return row

    def to_representation(self, value: Any) -> str:
        """See serializers.Field."""
        return uri_of(self.resource, value.pk)


class Resource(serializers.Serializer):
    """What every row has."""

    RESOURCE = ""

    id = serializers.IntegerField(read_only=True)
    resource_uri = serializers.SerializerMethodField()

    def get_resource_uri(self, row: Any) -> str:
        """Return the row's name in other rows."""
        return uri_of(self.RESOURCE, row.pk)


class TitledResource(Resource):
    """A row with a title, a description and a switch."""

    title = Text(max_length=255)
    description = Text(default="", allow_blank=True)
    enqueue_is_enabled = YesNo(default=True)


class GroupSerializer(Resource):
    """People with the same permissions."""

    RESOURCE = "group"
    name = serializers.CharField(read_only=True)


class ProjectSerializer(TitledResource):
    """Jobs that belong together."""

    RESOURCE = "project"
    groups = Uri("group", many=True, read_only=True, source="viewers")
    admins = Uri("group", many=True, read_only=True)
    worker_pools = Uri("worker_pool", many=True, read_only=True)
    notification_addresses = Text(default="", allow_blank=True)


class WorkerPoolSerializer(TitledResource):
    """Workers that do the same work."""

    RESOURCE = "worker_pool"
    workers = Uri("worker", many=True, read_only=True)


class WorkerSerializer(TitledResource):
    """One daemon; never its secret."""

    RESOURCE = "worker"
    api_key = Text(read_only=True)
    ping_response_dts = Date(read_only=True)
    worker_version = Text(read_only=True)
    concurrent_jobs = Whole(read_only=True)
    batch_uri = serializers.SerializerMethodField()

    def get_batch_uri(self, worker: Any) -> str:
        """Return where a worker may send many requests at once."""
        return BATCH_URI


class WorkerChange(serializers.Serializer):
    """What a worker says of itself."""

    ping_response_dts = Date(allow_null=True, required=False)
    worker_version = Text(
        allow_null=True, allow_blank=True, required=False, max_length=255
    )
    concurrent_jobs = Whole(
        allow_null=True, required=False, min_value=0, max_value=MAX_INTEGER
    )


class JobTemplateSerializer(TitledResource):
    """What is put around scripts."""

    RESOURCE = "job_template"
    body = Text(read_only=True)
    project = Uri("project", read_only=True)


class JobSerializer(TitledResource):
    """What is run."""

    RESOURCE = "job"
    children = Uri("job", many=True, read_only=True)
    disable_enqueue_after_fails = Whole(
        default=None, allow_null=True, min_value=0, max_value=MAX_INTEGER
    )
    job_template = Uri(
        "job_template", source="template", queryset=JobTemplate.objects.all()
    )
    notification_addresses = Text(
        default="", allow_blank=True, validators=[validators.check_addresses]
    )
    parent = Uri("job", default=None, allow_null=True, queryset=Job.objects.all())
    reschedule_interval = Whole(
        default=None, allow_null=True, min_value=1, max_value=MAX_INTEGER
    )
    reschedule_interval_type = serializers.ChoiceField(
        default="", allow_blank=True, choices=IntervalType.choices
    )
    run_on_all_workers = YesNo(default=False)
    schedule_children_on_error = YesNo(default=False)
    host = Text(default="", allow_blank=True, max_length=255)
    script_content = serializers.CharField(read_only=True)
    script_content_partial = Text()
    worker_pool = Uri("worker_pool", queryset=WorkerPool.objects.all())


class RunSerializer(Resource):
    """One execution of a job."""

    RESOURCE = "run"
    enqueue_dts = Date(read_only=True)
    is_manual = YesNo(default=False)
    job = Uri("job", queryset=Job.objects.all())
    pid = Whole(read_only=True)
    return_dts = Date(read_only=True)
    return_success = YesNo(read_only=True, allow_null=True)
    run_log = serializers.SerializerMethodField()
    schedule_children = YesNo(default=True)
    schedule_dts = Date(required=False)
    schedule_id = Whole(read_only=True)
    start_dts = Date(read_only=True)
    worker = Uri("worker", default=None, allow_null=True, queryset=Worker.objects.all())
    # ours
    exit_status = Whole(read_only=True)
    reason = Text(read_only=True)
    usage = Used(read_only=True)
    host = Text(default="", allow_blank=True, max_length=255)
    late_return_dts = Date(read_only=True)
    late_return_success = YesNo(read_only=True, allow_null=True)
    late_exit_status = Whole(read_only=True)

    def get_run_log(self, run: Any) -> str | None:
        """Return the URI of the log, which was looked up as ``log_id``."""
        return None if run.log_id is None else uri_of("run_log", run.log_id)


class RunChange(serializers.Serializer):
    """What a worker says of a run; and what people want of one that waits."""

    schedule_dts = Date(required=False, help_text="By people: when it is due.")
    schedule_children = YesNo(required=False, help_text="By people.")
    worker = Uri(
        "worker", allow_null=True, required=False, queryset=Worker.objects.all()
    )
    enqueue_dts = Date(allow_null=True, required=False)
    start_dts = Date(allow_null=True, required=False)
    pid = Whole(allow_null=True, required=False, min_value=-MAX_ID, max_value=MAX_ID)
    return_dts = Date(allow_null=True, required=False)
    return_success = YesNo(allow_null=True, required=False)
    exit_status = Whole(
        allow_null=True, required=False, min_value=-MAX_INTEGER, max_value=MAX_INTEGER
    )
    reason = Text(allow_blank=True, required=False)
    host = Text(allow_blank=True, required=False, max_length=255)
    # between our worker and our server
    with_job = YesNo(required=False, help_text="Answer a first claim with the job.")
    log = Text(allow_blank=True, required=False, help_text="The log, with the end.")
    usage = Used(
        allow_null=True,
        required=False,
        help_text="What the run has used, with the end.",
    )


class RunLogSerializer(Resource):
    """What a run has printed."""

    RESOURCE = "run_log"
    content = Text(default="", allow_blank=True)
    run = Uri("run", queryset=Run.objects.all())


class RunLogChange(serializers.Serializer):
    """The whole of a log, as far as it has got."""

    content = Text(required=False, allow_blank=True)


class KillRequestSerializer(Resource):
    """Asks for a run to be killed."""

    RESOURCE = "kill_request"
    enqueue_dts = Date(read_only=True)
    execute_dts = Date(read_only=True)
    requested_by = Text(read_only=True)
    run = Uri("run", queryset=Run.objects.all())
    schedule_dts = Date(read_only=True)


class KillRequestChange(serializers.Serializer):
    """How far a worker has got with killing a run."""

    enqueue_dts = Date(allow_null=True, required=False)
    execute_dts = Date(allow_null=True, required=False)
