"""Computed blocks kept outside the device, in host memory and on disk: found again by hash, brought back by request.

``layout`` says whose blocks are alike, ``host`` and ``disk`` are the tiers, ``shelf`` is both, ``worker`` the thread
that reads and writes them, ``economy`` what loading and computing were measured to take, and ``offload`` decides. None
of them knows a model, a backend or a tensor.
"""
