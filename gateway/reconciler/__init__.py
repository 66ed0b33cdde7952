"""What finds the truth afterwards: operations in doubt (`doubt`), and sessions whose steps the ledger missed
(`takeover`). Both ask the upstream's list, and never act on an error."""
