"""Devices behind one interface: discovery, capabilities, memory, kernels, quantised weights, collectives.

Knows nothing of models, requests or scheduling.
"""
