"""The commands of cron mode: one pass each, for a crontab or a timer."""
