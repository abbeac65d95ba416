"""The engine's core: which sequences run, over which blocks, and what becomes of the tokens.

Knows no tensors, no backend and no model: it hands an executor a plan of integers and reads back token ids.
"""
