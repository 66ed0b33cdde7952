"""What finds the truth afterwards: operations in doubt (`doubt`), sessions whose steps the ledger missed (`takeover`),
and what went past the gateway (`drift`). All ask the upstream's list, and never act on an error."""
