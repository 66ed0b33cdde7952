-- start: a start was asked. From now on the session counts as live, until the upstream says that it is not.
--
-- ARGV[5] hold in ms   ARGV[6] cap, -1 for none
--
-- Reply  {"missing"} · {"unsettled", used, state}  a lent slot could let one product too many in: wait and ask again
--        {"live", used, state}    it is live or ended already: nothing to record
--        {"asked", used, state}   also for a repeated call
-- Events none; the commit says started
-- Keeps  no slot is lent once a start is pending

local cap = tonumber(ARGV[6])
local state = field('s')
if not state then
  return {'missing'}
end
if state ~= 'p' then
  return {'live', count('u'), state}
end
local lent = count('w')
if lent > 0 then
  if cap >= 0 and count('u') + lent > cap then
    return {'unsettled', count('u'), state}
  end
  local products = {}
  for _, name in ipairs(redis.call('HKEYS', SESSION)) do
    if string.sub(name, 1, 1) == 'w' and #name > 1 then
      products[#products + 1] = string.sub(name, 2)
    end
  end
  pay((lendings(products)))
end
if not field('h' .. operation .. '.0') then
  write_record(0, 's', next_version(), '')
  add('g', '1')
  due(1, tonumber(ARGV[5]))
  keep()
end
return {'asked', count('u'), state}
