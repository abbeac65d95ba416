"""What every request passes on its way in, outermost first; each layer is plain ASGI, so that streams pass unbuffered.

Knows nothing of routes.
"""
