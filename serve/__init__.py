"""Serving: questions of a data directory asked over HTTP.

A front answers HTTP and decodes no data; query workers, processes of their own, each with a Store,
read data and know nothing of HTTP. `forebay serve` starts both.
"""
