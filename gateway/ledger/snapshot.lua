-- snapshot: the session's fields and values in turn; empty where there is no ledger. Changes nothing.

return everything({})
