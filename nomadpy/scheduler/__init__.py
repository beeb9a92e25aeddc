"""The pure scheduler: an evaluation and a snapshot in, a Decision out; no clock, chance or I/O of its own."""
