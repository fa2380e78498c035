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
                help_text="Only this host starts its runs, in cron mode; compared literally.",
                max_length=255,
            ),
        ),
        migrations.AlterField(
            model_name="run",
            name="host",
            field=models.CharField(
                blank=True,
                default="",
                help_text="The only host to start it, in cron mode; then, where it has run.",
                max_length=255,
            ),
        ),
    ]
