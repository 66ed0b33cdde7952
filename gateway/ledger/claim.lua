-- claim: pending operations of a bucket that are due, leased to one reconciler at a time.
--
-- KEYS[1] pending   ARGV[1] lease in ms   ARGV[2] how many at most
--
-- Reply  how many operations are pending in all, then member, lease, member, lease, …: the lease is the member's new
--        score, and the fence of `settle`: whoever finds another score there has lost its lease
-- Events none

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local claimed = {redis.call('ZCARD', KEYS[1])}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
  -- Half a millisecond: no time that an operation is due at, all of them whole, looks like a lease.
  local lease = string.format('%.1f', now + tonumber(ARGV[1]) + 0.5)
  redis.call('ZADD', KEYS[1], lease, name)
  claimed[#claimed + 1] = name
  claimed[#claimed + 1] = lease
end
return claimed
