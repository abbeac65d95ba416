"""One inference engine: models, loading, KV cache, batching, sampling and the offline ``LLM``.

Knows nothing of other engines, HTTP APIs for users, or tenants.
"""
