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
  local entry = {'XADD', KEYS[tonumber(ARGV[i])], 'MAXLEN', '~', ARGV[2], '*',
    's', ARGV[i + 2], 'e', ARGV[i + 1], 'o', ARGV[i + 3]}
  if ARGV[i + 1] == 'refused' then
    for _, item in ipairs({'p', ARGV[i + 5], 'u', ARGV[i + 6], 'c', ARGV[i + 7]}) do
      entry[#entry + 1] = item
    end
  end
  entry[#entry + 1] = 'd'
  entry[#entry + 1] = ARGV[i + 4]
  redis.call(unpack(entry))
  written = written + 1
end
for _, events in ipairs(KEYS) do
  redis.call('PEXPIRE', events, ARGV[1])
end
return written
