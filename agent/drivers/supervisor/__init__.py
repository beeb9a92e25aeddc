"""The small parent process of an allocation's plain tasks, which outlives the agent, and the agent's line to it.

`main` (run as a script), `tasks`, `process` and `rotation` are the supervisor: the smallest part of the standard
library and nothing else, so that it stays under 12 MB. `client` is the agent's side.
"""
