-- commit: the upstream answered yes, to all or to a part of what was asked.
--
-- ARGV[5] state of the session seen after the answer: p, l, e, or "" where nobody looked
-- ARGV[6] late apply in ms   ARGV[7] event: attached, detached, replaced, started
-- ARGV[8…] triples: kind (t, g, s), "1" applied or "0", product ("" for s)
--
-- Reply  {"missing"}  the ledger has lost the session: open it, and say so again
--        {"settled" or "pending", used}  pending: what is attached now is not sure yet, the reconciler looks
-- Events the event given, with the products that were applied (p), for a replace what left (x), and of what left that
--        which counts still, or may (k); started once
-- Keeps  a product that the upstream has, has a slot, whatever became of its record meanwhile (rules 2, 3, 5)

local seen, applied, gone, kept, left = ARGV[5], {}, {}, {}, 0
local records = (#ARGV - 7) / 3
local state, lendings_pending, found, products = own_records(records)
if not state then
  return {'missing'}
end
local known = false
for _, record in pairs(found) do
  known = known or not record.doubt
end
if not known and said_lately(ARGV[7]) then
  return {#products > 0 and 'pending' or 'settled', count('u')}
end
local version = next_version()
local lent = lendings_pending and unlend(operation, products)

for n = 0, records - 1 do
  local kind, yes, product = ARGV[8 + 3 * n], ARGV[9 + 3 * n] == '1', ARGV[10 + 3 * n]
  local record = found[n]
  local slot = kind ~= 's' and slot_of(product) or nil
  local concluded, news = true, record ~= nil
  if kind == 't' and record then
    if yes and slot and (slot.flag == 'd' or (slot.flag == 'a' and record.doubt)) then
      confirm(product, slot, version)
      concluded = false
    else
      drop_hold(product, slot, yes, version)
    end
  elseif kind == 't' and yes then
    if not slot or slot.flag ~= 'a' then
      take_slot(product, slot, version)
      confirm(product, slot_of(product), version)
      concluded, news = false, true
    end
  elseif kind == 'g' and yes then
    news = slot ~= nil and slot.flag ~= 'r'
    concluded = give_back(product, record and record.generation, seen, version)
    if lent then
      yield_place(product, version)
    end
  elseif kind == 'g' and slot and slot.flag == 'a' and not is_live() then
    concluded = false
  elseif kind == 's' then
    if record then
      add('g', '-1')
    end
    news = field('s') == 'p'
    if yes and news then
      redis.call('HSET', SESSION, 's', 'l')
    end
  end
  if concluded then
    delete_record(n)
  else
    write_record(n, kind == 'g' and yes and 'K' or string.upper(kind), version, product)
    left = left + 1
  end
  if yes and news then
    local list = kind == 'g' and ARGV[7] == 'replaced' and gone or applied
    list[#list + 1] = product
    local still = kind == 'g' and slot_of(product)
    if still and not held_only(still) then
      kept[#kept + 1] = product
    end
  end
end

redis.call('ZREM', PENDING, member(records))
if left > 0 then
  due(records, LOOK_MS)
end
learn_state(seen)
local used = count('u')
if #applied + #gone > 0 then
  local said = {'p', table.concat(applied, ' '), 'u', text(used)}
  if #gone > 0 then
    said[#said + 1] = 'x'
    said[#said + 1] = table.concat(gone, ' ')
  end
  if #kept > 0 then
    said[#said + 1] = 'k'
    said[#said + 1] = table.concat(kept, ' ')
  end
  event(ARGV[7], unpack(said))
end
keep()
return {left > 0 and 'pending' or 'settled', used}
