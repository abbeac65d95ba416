"""The words that every isagellm component speaks: requests, events, errors, metrics, interfaces and plug-in loading.

Knows nothing of torch, HTTP servers or any other isagellm package.
"""
