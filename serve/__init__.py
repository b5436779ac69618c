"""Serving: questions about a data directory, over HTTP.

A front answers HTTP and decodes no data; query workers, which are separate processes with a Store
each, read data and know nothing of HTTP. `forebay serve` starts both.
"""
