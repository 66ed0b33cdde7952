-- note: decisions of the gateway join their buckets' streams, behind the steps that the other scripts tell of.
--
-- KEYS[1…] events, as in `slots.lua`; in a Cluster one, elsewhere any number
-- ARGV[1] retention in ms   ARGV[2] stream entries
-- ARGV[3…] in turn, by their first word:
--          "key"       what follows goes to the next of KEYS; the first word of all
--          "decision"  session or "", operation, the decision as JSON; "dropped" has the same three
--          "refused"   the same three, and what no step tells of: its products, the slots used and the cap
--
-- Reply  how many were written

local written, key, at = 0, 0, 3
while at <= #ARGV do
  local kind = ARGV[at]
  if kind == 'key' then
    key = key + 1
    at = at + 1
  elseif kind == 'refused' then
    redis.call('XADD', KEYS[key], 'MAXLEN', '~', ARGV[2], '*', 's', ARGV[at + 1], 'e', kind, 'o', ARGV[at + 2],
      'p', ARGV[at + 4], 'u', ARGV[at + 5], 'c', ARGV[at + 6], 'd', ARGV[at + 3])
    at = at + 7
    written = written + 1
  else
    redis.call('XADD', KEYS[key], 'MAXLEN', '~', ARGV[2], '*', 's', ARGV[at + 1], 'e', kind, 'o', ARGV[at + 2],
      'd', ARGV[at + 3])
    at = at + 4
    written = written + 1
  end
end
for i = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
return written
