"""What only the leader does; started on winning, stopped on losing leadership."""
