import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import job_runner_worker.server.validators


class Migration(migrations.Migration):
    dependencies = [
        ("server", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="ExcludedTime",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("start_time", models.TimeField()),
                (
                    "end_time",
                    models.TimeField(help_text="Included; it may be on the next day."),
                ),
                ("note", models.CharField(blank=True, default="", max_length=255)),
            ],
            options={
                "ordering": ("start_time", "id"),
            },
        ),
        migrations.AddField(
            model_name="job",
            name="cron_expression",
            field=models.CharField(
                blank=True,
                default="",
                help_text="Instead of an interval, such as 30 4 * * 1-5.",
                max_length=255,
                validators=[job_runner_worker.server.validators.check_cron_expression],
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="fail_times",
            field=models.PositiveIntegerField(default=0, editable=False),
        ),
        migrations.AddField(
            model_name="job",
            name="planned_schedule_id",
            field=models.BigIntegerField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="job",
            name="schedule_error",
            field=models.TextField(blank=True, default="", editable=False),
        ),
        migrations.AddField(
            model_name="job",
            name="schedule_start_dts",
            field=models.DateTimeField(
                default=django.utils.timezone.now,
                help_text="The intervals are counted from it.",
                verbose_name="first time",
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="time_zone",
            field=models.CharField(
                blank=True,
                default="",
                help_text="Such as Europe/Amsterdam; the server's where it is empty.",
                max_length=64,
                validators=[job_runner_worker.server.validators.check_time_zone],
            ),
        ),
        migrations.AddField(
            model_name="jobtemplate",
            name="notification_addresses",
            field=models.TextField(
                blank=True,
                default="",
                help_text="One e-mail address a line.",
                validators=[job_runner_worker.server.validators.check_addresses],
            ),
        ),
        migrations.AddField(
            model_name="workerpool",
            name="notification_addresses",
            field=models.TextField(
                blank=True,
                default="",
                help_text="One e-mail address a line.",
                validators=[job_runner_worker.server.validators.check_addresses],
            ),
        ),
        migrations.AddField(
            model_name="workerpool",
            name="unresponsive_dts",
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.AlterField(
            model_name="job",
            name="disable_enqueue_after_fails",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="Disable the job when it has failed so many times in a row.",
                null=True,
            ),
        ),
        migrations.AlterField(
            model_name="job",
            name="notification_addresses",
            field=models.TextField(
                blank=True,
                default="",
                help_text="One e-mail address a line.",
                validators=[job_runner_worker.server.validators.check_addresses],
            ),
        ),
        migrations.AlterField(
            model_name="job",
            name="run_on_all_workers",
            field=models.BooleanField(
                default=False, help_text="One run on each enabled worker of the pool."
            ),
        ),
        migrations.AlterField(
            model_name="job",
            name="schedule_children_on_error",
            field=models.BooleanField(
                default=False,
                help_text="Run the children also when this one has failed.",
            ),
        ),
        migrations.AlterField(
            model_name="project",
            name="notification_addresses",
            field=models.TextField(
                blank=True,
                default="",
                help_text="One e-mail address a line.",
                validators=[job_runner_worker.server.validators.check_addresses],
            ),
        ),
        migrations.AddIndex(
            model_name="run",
            index=models.Index(
                condition=models.Q(
                    ("enqueue_dts__isnull", False), ("return_dts", None)
                ),
                fields=["job"],
                name="run_active_of_job",
            ),
        ),
        migrations.AddIndex(
            model_name="run",
            index=models.Index(
                condition=models.Q(("enqueue_dts", None)),
                fields=["job", "schedule_dts"],
                name="run_waiting_of_job",
            ),
        ),
        migrations.AddField(
            model_name="excludedtime",
            name="job",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE,
                related_name="excluded",
                to="server.job",
            ),
        ),
    ]
