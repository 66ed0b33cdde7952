-- adopt: what the upstream's list has becomes what the ledger knows: for a session that is new to it, for one whose
-- ledger was lost, and for products that went past the gateway. What the calling gateway still has on its way, and may
-- therefore not be in the list yet, is held as if it had just been asked. What the journal says was removed while it
-- counts (N5), which no list can show, is used; since the journal may say so of one too many, it is let in again only
-- where the cap has room for all. Adds, never takes away.
--
-- ARGV[5] version of the ledger that was read before the list was asked, "" where there was none
-- ARGV[6] state (p, l, e)   ARGV[7] hold in ms   ARGV[8] late apply in ms
-- ARGV[9] how many foreign products the upstream has, ARGV[10] how many were removed; then these, then those
-- after them, for each operation on its way: its id, "1" where it is in doubt, else "0", how many steps it has, and of
-- each the kind (t, g, s) and the product
--
-- Reply  {"adopted", used, number of new slots} · {"changed"}  something was written since: read and ask again
-- Events attached, with the products that were new to a ledger which existed; opened, for the journal alone, with those
--        (p, and the removed ones k) that a ledger begins with
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
local listed, removed = tonumber(ARGV[9]), tonumber(ARGV[10])
for i = 11, 10 + listed do
  local slot = slot_of(ARGV[i])
  if not slot then
    take_slot(ARGV[i], nil, current)
    drop_hold(ARGV[i], slot_of(ARGV[i]), true, current)
    new[#new + 1] = ARGV[i]
  elseif slot.flag ~= 'a' then
    slot.flag = 'a'
    slot.generation = current
    write_slot(ARGV[i], slot)
  end
end
for i = 11 + listed, 10 + listed + removed do
  if not slot_of(ARGV[i]) then
    take_slot(ARGV[i], nil, current)
    drop_hold(ARGV[i], slot_of(ARGV[i]), true, current)
    yield_place(ARGV[i], current)
  end
end

local asking, at = operation, 11 + listed + removed
while at <= #ARGV do
  operation = ARGV[at]
  local doubt, records, written = ARGV[at + 1] == '1', tonumber(ARGV[at + 2]), false
  for n = 0, records - 1 do
    local kind, product = ARGV[at + 3 + 2 * n], ARGV[at + 4 + 2 * n]
    if not read_record(n) then
      if kind == 't' then
        take_slot(product, slot_of(product), current)
      elseif kind == 's' then
        add('g', '1')
      end
      -- Whether a product was attached again after its detach was asked is not known any more: no generation, so that
      -- its slot comes back only by the list.
      write_record(n, doubt and string.upper(kind) or kind, kind == 'g' and '0' or current, product)
      written = true
    end
  end
  if written then
    due(records, tonumber(doubt and ARGV[8] or ARGV[7]))
  end
  at = at + 3 + 2 * records
end
operation = asking

if not version and listed + removed > 0 then
  event('opened', 'p', table.concat(new, ' '), 'k', table.concat(ARGV, ' ', 11 + listed, 10 + listed + removed), 'u',
    text(count('u')))
elseif #new > 0 then
  event('attached', 'p', table.concat(new, ' '), 'u', text(count('u')), 'a', 'adopted')
end
keep()
return {'adopted', count('u'), #new}
