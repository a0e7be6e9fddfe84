"""Many scans: one that fails does not stop the others, and work that is done is not done again."""
