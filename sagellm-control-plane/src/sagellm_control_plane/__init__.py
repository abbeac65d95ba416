"""Many engines behind one interface: registry, routing, queueing, service levels, lifecycle and the remote engine.

Knows nothing of tokens' meaning, torch, or HTTP APIs for users.
"""
