from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("server", "0005_ended_runs"),
    ]

    operations = [
        migrations.AddField(
            model_name="worker",
            name="unresponsive_dts",
            field=models.DateTimeField(editable=False, null=True),
        ),
    ]
