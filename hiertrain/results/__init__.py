"""What a run leaves on disk: records with their environment, and tables; and alarms at numbers that look wrong."""
