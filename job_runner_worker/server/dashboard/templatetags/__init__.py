"""What templates of the dashboard can say."""
