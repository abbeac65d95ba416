"""OpenAI's API as data: request bodies read into the contract, and the contract's events written as OpenAI's JSON.

Knows nothing of HTTP, of connections, or of the control plane.
"""
