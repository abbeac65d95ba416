"""Running a step's plan: where the model, its cache and the devices are.

Knows nothing of scheduling, requests or text.
"""
