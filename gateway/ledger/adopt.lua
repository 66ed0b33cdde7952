-- adopt: what the upstream's list has becomes what the ledger knows: for a session that is new to it, for one whose
-- ledger was lost, and for products that went past the gateway. Adds, never takes away.
--
-- ARGV[5] version of the ledger that was read before the list was asked, "" where there was none
-- ARGV[6] state (p, l, e)   ARGV[7…] foreign products that the upstream has
--
-- Reply  {"adopted", used, number of new slots} · {"changed"}  something was written since: read and ask again
-- Events attached, with the products that were new to a ledger which existed
-- Keeps  rule 4: a list is believed only where nothing happened since before it was asked

local version = field('v')
if (version or '') ~= ARGV[5] then
  return {'changed'}
end
if not version then
  redis.call('HSET', SESSION, 's', ARGV[6], 'u', 0)
else
  learn_state(ARGV[6])
end
local new, current = {}, next_version()
for i = 7, #ARGV do
  local slot = slot_of(ARGV[i])
  if not slot then
    take_slot(ARGV[i], nil, current, true)
    drop_hold(ARGV[i], true, current)
    new[#new + 1] = ARGV[i]
  elseif slot.flag ~= 'a' then
    slot.flag = 'a'
    slot.generation = current
    write_slot(ARGV[i], slot)
  end
end
if version and #new > 0 then
  event('attached', 'p', table.concat(new, ' '), 'u', text(count('u')), 'a', 'adopted')
end
keep()
return {'adopted', count('u'), #new}
