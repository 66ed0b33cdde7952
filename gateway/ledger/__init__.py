"""The ledger: which foreign products of a session hold a slot, kept in Redis by atomic scripts.

`slots.lua` holds the theory and what all scripts share; each step is a script of its own; `steps` calls them with
types; `connection` carries them to Redis, one write a turn.
"""
