"""All that is known of a job's text and shape: pure functions from text to jobs and back."""
