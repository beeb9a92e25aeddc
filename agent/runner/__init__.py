"""How an allocation lives on a node: pure machines that decide, and thin shells that do."""
