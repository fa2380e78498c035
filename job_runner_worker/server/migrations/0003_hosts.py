from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("server", "0002_schedules"),
    ]

    operations = [
        migrations.AddField(
            model_name="job",
            name="host",
            field=models.CharField(
                blank=True,
                default="",
                help_text="In cron mode only this host starts its runs.",
                max_length=255,
            ),
        ),
    ]
