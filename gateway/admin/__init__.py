"""The admin port: what operators and their machines ask a running gateway."""
