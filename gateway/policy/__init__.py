"""The platform's rules: what they are (`model`), how a file says them (`document`), whom they have reached
(`rollout`), and what they say of one request (`evaluate`). Pure: no I/O, no clock."""
