-- detach: a detach was asked. Before the start its slot may come back, so what is true of the slot now is recorded. Live,
-- it is recorded of a slot that was never confirmed: the attach may have been applied, and its product be gone before the
-- list is asked.
--
-- ARGV[5] hold in ms   ARGV[6] product
--
-- Reply  {"missing"} · {"ended"} · {"untracked", used, state}  no slot: nothing to record
--        {"live", used, state}    the slot stays used
--        {"asked", used, state}   also for a repeated call
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
if not slot then
  return {'untracked', used, state}
end
local live = is_live()
if (not live or slot.flag == 'h') and not field('h' .. operation .. '.0') then
  write_record(0, 'g', slot.generation, product)
  due(1, tonumber(ARGV[5]))
  keep()
end
return {live and 'live' or 'asked', used, state}
