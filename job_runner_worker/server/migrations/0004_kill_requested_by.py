from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("server", "0003_hosts"),
    ]

    operations = [
        migrations.AddField(
            model_name="killrequest",
            name="requested_by",
            field=models.CharField(blank=True, default="", max_length=150),
        ),
    ]
