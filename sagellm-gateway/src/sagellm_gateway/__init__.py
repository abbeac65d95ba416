"""The HTTP API for users: OpenAI-compatible routes, keys, limits and metrics over a control plane.

Knows nothing of torch, or of how an engine is chosen.
"""
