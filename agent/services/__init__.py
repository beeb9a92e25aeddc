"""What surrounds a task: its certificates and identities."""
