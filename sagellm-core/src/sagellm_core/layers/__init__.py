"""What models are made of: projections, norms, rotary embedding, attention, MLP, decoder layer.

A layer holds packed weights and calls a backend's operations; it knows nothing of files, requests or scheduling.

Dimension letters, here and in models: T tokens of a step over all sequences, R rows of them that are sampled, E hidden
size, O output features, I MLP width, Hq query heads, Hkv key/value heads, D head size, V vocabulary.
"""
