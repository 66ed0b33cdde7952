-- detach: a detach was asked. Before the start its slot may come back, so what is true of the slot now is recorded.
-- Live it is recorded as well, and also where there is no slot: what was attached meanwhile, and never confirmed, may be
-- gone before the list is asked.
--
-- ARGV[5] hold in ms   ARGV[6] product
--
-- Reply  {"missing"} · {"ended"}
--        {"untracked", used, state}  no slot
--        {"stays", used, state}      live: the slot stays used
--        {"asked", used, state}
-- Events none

local product = ARGV[6]
local state, used = field('s'), count('u')
if not state then
  return {'missing'}
end
if state == 'e' then
  return {'ended'}
end
local slot = slot_of(product)
if not field('h' .. operation .. '.0') then
  write_record(0, 'g', slot and slot.generation or '0', product)
  due(1, tonumber(ARGV[5]))
  keep()
end
if not slot then
  return {'untracked', used, state}
end
return {is_live() and 'stays' or 'asked', used, state}
