"""The isagellm inference engine in one import.

Composes its components and knows nothing of how any of them works inside.
"""
