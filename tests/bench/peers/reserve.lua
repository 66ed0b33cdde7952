-- The peers' first step: a slot for a product of a session, or none. What the gateway does besides (records that outlive
-- a crash, who owns what, the policy, events) is spared the peers.
--
-- KEYS[1] the session's hash: u slots that count; p<product> one slot, "h" held or "a" attached, then its holders
-- ARGV    product, cap, seconds that the session is kept, "1" where the members of a full session are wanted
-- Reply   {1, used} · {0, used, 1 where full for good, else 0, member …}

local slot, used = unpack(redis.call('HMGET', KEYS[1], 'p' .. ARGV[1], 'u'))
used = tonumber(used) or 0
if not slot and used >= tonumber(ARGV[2]) then
  if ARGV[4] ~= '1' then
    return {0, used}
  end
  local reply = {0, used, 1}
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 1) == 'p' then
      reply[#reply + 1] = string.sub(fields[i], 2)
      if string.sub(fields[i + 1], 1, 1) == 'h' then
        reply[3] = 0
      end
    end
  end
  return reply
end
local flag, holders = 'h', 0
if slot then
  flag, holders = string.sub(slot, 1, 1), tonumber(string.sub(slot, 2))
else
  used = redis.call('HINCRBY', KEYS[1], 'u', 1)
end
redis.call('HSET', KEYS[1], 'p' .. ARGV[1], flag .. string.format('%d', holders + 1))
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {1, used}
