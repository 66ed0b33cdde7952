-- postpone: a claimed operation could not be settled now; it is due again later than its lease ends, or sooner.
--
-- KEYS[1] pending   ARGV[1] lease (the fence)   ARGV[2] when it is due, in ms from now   ARGV[3] member
--
-- Reply  1, or 0 where another reconciler has it, or something happened to it meanwhile
-- Events none

if redis.call('ZSCORE', KEYS[1], ARGV[3]) ~= ARGV[1] then
  return 0
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[3])
return 1
