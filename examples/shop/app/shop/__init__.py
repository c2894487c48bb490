"""A small web shop without a database: catalogue, cart, checkout, and a JSON API with the same content.

All state lives in the visitor's cookies, so any replica can answer any request.
"""
