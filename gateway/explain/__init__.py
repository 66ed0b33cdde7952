"""One verdict in words: what the gateway would answer, by which rule, why, and what the merchant can do.

Presentation only: `decision` takes plain data and the texts of `refusals`, `table` prints it, `words` holds
what is said of what is allowed.
"""

from gateway.explain.decision import Explanation, Snapshot, explain, explain_error, to_json
from gateway.explain.table import render

__all__ = ["Explanation", "Snapshot", "explain", "explain_error", "render", "to_json"]
