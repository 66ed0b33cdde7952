-- replace: an old product is to make room for a new one. Before the start one slot passes from the old to the new in
-- one step: it is lent until the outcome is known. Once live, the new one must have a slot already, or need none.
--
-- ARGV[5] hold in ms   ARGV[6] cap, -1 for none   ARGV[7] state that the upstream says now (p, l, e)
-- ARGV[8] old product   ARGV[9] new product   ARGV[10] "1" where the new product is foreign, else "0"
-- ARGV[11] "1" where this is a retry after a lost answer
--
-- Reply  {"missing"} · {"ended"}
--        {"held", used, state}                        also for a repeated call
--        {"full" or "started", used, state, field, value, …}   refused: no slot left, or live
-- Events refused
-- Record 0 gives the old product, record 1 takes the new one where that is foreign
-- Keeps  two slots count as one only while nobody else may attach either product, and no start is pending. A start past
--        the gateway while the replace is on its way can make both count: nothing here can know of it in time

local hold, cap, seen, old, new, foreign = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9], ARGV[10] == '1'
if not field('s') then
  return {'missing'}
end
if field('h' .. operation .. '.0') or field('h' .. operation .. '.1') then
  return {'held', count('u'), field('s')}
end
learn_state(seen)
local state, used = field('s'), count('u')
if state == 'e' then
  return {'ended'}
end

local given, taken = slot_of(old), foreign and slot_of(new) or nil
local live = is_live()
local lent, payments = lendings({new})
local needed = payments
if foreign and not taken then
  needed = needed + 1
end

local refused
local lends = false
local yielded = taken and taken.flag == 'x' and cap >= 0 and used > cap
if foreign and (not taken or yielded) and live and cap >= 0 then
  refused = 'started'
elseif yielded then
  refused = 'full'
elseif foreign and needed > 0 and cap >= 0 then
  lends = not live and payments == 0 and old ~= new and given and given.holders == 0 and given.flag == 'a'
    and not field('w' .. old) and used <= cap
  if not lends and used + needed > cap then
    refused = 'full'
  end
end
if refused then
  if not (ARGV[11] == '1' and said_lately('refused')) then
    event('refused', 'p', new, 'u', text(used), 'c', text(cap))
  end
  return everything({refused, used, state})
end

write_record(0, 'g', given and given.generation or '0', old)
if foreign then
  pay(lent)
  local version = next_version()
  take_slot(new, taken, version, encode_record(1, 't', version, new))
  if lends then
    lend(old, new)
  end
end
due(foreign and 2 or 1, hold)
keep()
return {'held', count('u'), state}
