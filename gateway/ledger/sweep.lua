-- sweep: the next piece of one server's keys, for the one gateway that sweeps it now. The round is shared: whoever has
-- the sweep goes on where the one before stopped.
--
-- KEYS[1] sweep, hash: c where SCAN goes on, o who has the sweep, t until when in ms
-- ARGV[1] who asks   ARGV[2] lease in ms   ARGV[3] pattern of the sessions' keys
-- ARGV[4] how many keys to look at, 0 to keep the lease only
--
-- Reply  {0} where another gateway has the sweep · {1, key, …}
-- Events none
-- Keeps  nothing depends on it: two who sweep at once ask the upstream more often, and no more

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local state = redis.call('HMGET', KEYS[1], 'c', 'o', 't')
if state[2] and state[2] ~= ARGV[1] and tonumber(state[3]) > now then
  return {0}
end
local reply, cursor = {1}, state[1] or '0'
if ARGV[4] ~= '0' then
  local found = redis.call('SCAN', cursor, 'MATCH', ARGV[3], 'COUNT', ARGV[4])
  cursor = found[1]
  for _, key in ipairs(found[2]) do
    reply[#reply + 1] = key
  end
end
redis.call('HSET', KEYS[1], 'c', cursor, 'o', ARGV[1], 't', string.format('%.0f', now + tonumber(ARGV[2])))
redis.call('PEXPIRE', KEYS[1], 86400000)
return reply
