-- The peers' second step: what was held is attached now, or given back where nobody else holds it and it is not
-- attached.
--
-- KEYS[1] the session's hash, as in reserve.lua   ARGV product, "1" attached or "0" refused
-- Reply   slots that count

local slot = redis.call('HGET', KEYS[1], 'p' .. ARGV[1])
if not slot then
  return redis.call('HGET', KEYS[1], 'u')
end
local flag, holders = string.sub(slot, 1, 1), math.max(0, tonumber(string.sub(slot, 2)) - 1)
if ARGV[2] == '1' then
  flag = 'a'
end
if flag == 'h' and holders == 0 then
  redis.call('HDEL', KEYS[1], 'p' .. ARGV[1])
  return redis.call('HINCRBY', KEYS[1], 'u', -1)
end
redis.call('HSET', KEYS[1], 'p' .. ARGV[1], flag .. string.format('%d', holders))
return redis.call('HGET', KEYS[1], 'u')
