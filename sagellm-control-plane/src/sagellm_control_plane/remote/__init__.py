"""The remote form of ``Engine``, as :mod:`sagellm_protocol.remote` specifies it: :mod:`.client` and :mod:`.server`."""
