"""`attachgate journal`: the decision journal, from Redis to JSON Lines.

    exporter   reads as a consumer group, tells gaps, acknowledges what is written
    output     a file that rotates, or standard output

The lines themselves are `gateway.ledger.lines`.
"""
