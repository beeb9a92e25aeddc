"""A log entry goes in, a state change comes out."""
