"""Wall clocks in the hands of the kit."""
