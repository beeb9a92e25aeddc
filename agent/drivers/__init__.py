"""How a task is started, watched and stopped: one module per driver."""
