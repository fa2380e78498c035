"""The embedded central server: Django models, REST API, broadcaster, event hub."""
