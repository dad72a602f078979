"""What both sides stand on: settings, jobs, the session."""
