"""Between a front and its core: the messages, and the ways they travel.

A front talks to a core in its own process or in a child process alike. Knows nothing of text or tensors.
"""
