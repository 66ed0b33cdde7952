-- ready: whether the ledger can be written here. A replica, a full or a read-only Redis says no, and why.
--
-- KEYS[1] a key that nobody else uses, and that goes away by itself
--
-- Reply  "ready"
-- Events none

redis.call('HSET', KEYS[1], 'asked', redis.call('TIME')[1])
redis.call('PEXPIRE', KEYS[1], 60000)
return 'ready'
