-- note: decisions of the gateway join their buckets' streams, behind the steps that the other scripts tell of.
--
-- KEYS[1…] events, as in `slots.lua`; in a Cluster one, elsewhere any number
-- ARGV[1] retention in ms   ARGV[2] stream entries
-- ARGV[3…] eight for each: number of its key, event ("decision", "refused", "dropped"), session or "", operation, the
--          decision as JSON, and for a refusal that no step tells of its products, the slots used and the cap
--
-- Reply  how many were written

local written = 0
for i = 3, #ARGV, 8 do
  local events, kind, session = KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2]
  local operation, decision = ARGV[i + 3], ARGV[i + 4]
  if kind == 'refused' then
    redis.call('XADD', events, 'MAXLEN', '~', ARGV[2], '*', 's', session, 'e', kind, 'o', operation,
      'p', ARGV[i + 5], 'u', ARGV[i + 6], 'c', ARGV[i + 7], 'd', decision)
  else
    redis.call('XADD', events, 'MAXLEN', '~', ARGV[2], '*', 's', session, 'e', kind, 'o', operation, 'd', decision)
  end
  written = written + 1
end
for i = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
return written
