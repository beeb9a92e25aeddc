"""What a server does: answer calls, schedule, watch over nodes and deployments."""
