-- note: decisions of the gateway join a bucket's stream, behind the steps that the other scripts tell of.
--
-- KEYS[1] events, as in `slots.lua`
-- ARGV[1] retention in ms   ARGV[2] stream entries
-- ARGV[3…] seven for each: event ("decision", "refused", "dropped"), session or "", operation, the decision as JSON, and
--          for a refusal that no step tells of its products, the slots used and the cap
--
-- Reply  how many were written

local EVENTS, written = KEYS[1], 0
for i = 3, #ARGV, 7 do
  local head = {'XADD', EVENTS, 'MAXLEN', '~', ARGV[2], '*', 's', ARGV[i + 1], 'e', ARGV[i], 'o', ARGV[i + 2]}
  if ARGV[i] == 'refused' then
    for _, item in ipairs({'p', ARGV[i + 4], 'u', ARGV[i + 5], 'c', ARGV[i + 6]}) do
      head[#head + 1] = item
    end
  end
  head[#head + 1] = 'd'
  head[#head + 1] = ARGV[i + 3]
  redis.call(unpack(head))
  written = written + 1
end
redis.call('PEXPIRE', EVENTS, ARGV[1])
return written
