from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("server", "0006_worker_unresponsive"),
    ]

    operations = [
        migrations.AddField(
            model_name="run",
            name="usage",
            field=models.JSONField(
                blank=True, help_text="See models.Usage.", null=True
            ),
        ),
    ]
