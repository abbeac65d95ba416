"""Executors: requests carried out on instances one is given, under the names that SAGE knows.

The plane itself relays events (:mod:`sagellm_control_plane.relay`); this is for callers who schedule themselves.
"""
