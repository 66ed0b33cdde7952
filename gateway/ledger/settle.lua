-- settle: the upstream's list says what became of an operation in doubt.
--
-- Asked after a claim, when the upstream can no longer apply the operation, the list is the last word. Asked earlier
-- (no lease), it is believed only where it shows that this very operation was applied: what it does not show, or what
-- another operation may have done, may still come.
--
-- ARGV[5] lease (the fence), "" for an early look   ARGV[6] number of records
-- ARGV[7] state of the session, looked at after the list
-- ARGV[8…] triples: record number, the slot's generation before the list was asked ("" where it had none),
--          "1" where the list has the product, else "0"
--
-- Reply  {"lost"}                 another reconciler has it, or it was settled
--        {"settled", used, committed, released}   how many products each
--        {"stale", used}          something moved since the list was asked: due again soon
--        {"in_doubt", used}       an early look that did not tell all
-- Events settled, with what was committed (p), what was released (r), and of that what counts all the same (k)
-- Keeps  rules 2 and 4

local records, seen, early = tonumber(ARGV[6]), ARGV[7], ARGV[5] == ''
if not early and redis.call('ZSCORE', PENDING, member(records)) ~= ARGV[5] then
  return {'lost'}
end
if not field('s') then
  redis.call('ZREM', PENDING, member(records))
  return {'settled', 0, 0, 0}
end

-- What another operation that does the opposite (kind g to an attach, t to a detach) may do to a product, or have done:
-- 'asked' while its own gateway still waits for the answer, 'doubt' where nobody does, nil where there is none.
local function opposed(product, kind)
  local found
  local fields = redis.call('HGETALL', SESSION)
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if string.sub(name, 1, 1) == 'h' and string.find(name, 'h' .. operation .. '.', 1, true) ~= 1 then
      local letter, other = string.match(value, '^(%a)%d*:(.*)$')
      if other == product and letter == kind then
        return 'asked'
      elseif other == product and (letter == string.upper(kind) or (letter == 'K' and kind == 'g')) then
        found = 'doubt'
      end
    end
  end
  return found
end

-- Whether the list shows that this operation was applied, and no other: nobody else may have attached, or taken away.
local function shown(record, slot, listed)
  if record.kind == 's' then
    return seen == 'l' or seen == 'e'
  elseif record.kind == 't' then
    return listed and slot and slot.flag == 'h' and slot.holders == 1
  elseif record.sure then
    return not listed and seen == 'p'
  end
  return not listed and seen == 'p' and slot and (slot.flag == 'a' or slot.flag == 'x') and slot.holders == 0
    and not opposed(record.product, 'g')
end

local asked, open = {}, 0
for i = 8, #ARGV, 3 do
  local n, listed = tonumber(ARGV[i]), ARGV[i + 2] == '1'
  local record = read_record(n)
  if record and (not early or (record.doubt and shown(record, slot_of(record.product), listed))) then
    asked[#asked + 1] = {n = n, record = record, listed = listed, generation = ARGV[i + 1]}
  elseif record then
    open = open + 1
  end
end
if early and #asked == 0 then
  return {'in_doubt', count('u')}
end

learn_state(seen)
local live = seen ~= 'p' or field('s') ~= 'p'
local version = next_version()
local committed, released, stale = {}, {}, 0
local pair = record_products(operation, records)
local lent = #pair == 2 and field('w' .. pair[1]) == operation

-- A product that the list does not have and whose slot lives by its holders alone. Live, it may have come and gone:
-- false where that will be known later.
local function judge_unseen(record, slot)
  local other = live and opposed(record.product, record.kind == 't' and 'g' or 't')
  if other == 'asked' then
    return false
  end
  if other or (not live and record.kind == 'g') then
    slot.flag = other and 'r' or 'd'
    slot.generation = version
    write_slot(record.product, slot)
  end
  if record.kind == 't' then
    drop_hold(record.product, slot, false, version)
  end
  return true
end

-- A lent slot counts as two as soon as it is known what became of the new product, or that the old one is gone. The
-- record of the new one is judged first.
local function ends_lending(ask, slot)
  local gone = not ask.listed and not live and slot and slot.holders == 0
  if read_record(1) and not gone then
    return false
  end
  unlend(operation, pair)
  lent = false
  return true
end

local replaces = lent
for i = 1, #asked do
  local ask = asked[replaces and #asked + 1 - i or i]
  local record, slot = ask.record, slot_of(ask.record.product)
  local concluded = true
  if record.kind == 's' then
    add('g', '-1')
  elseif slot and slot.generation ~= ask.generation then
    concluded = false
  elseif lent and ask.n == 0 and not ends_lending(ask, slot) then
    concluded = false
  elseif slot and ask.listed then
    if record.kind == 't' then
      drop_hold(record.product, slot, true, version)
    elseif slot.flag ~= 'a' then
      confirm(record.product, slot, version)
    end
  elseif slot and held_only(slot) then
    concluded = judge_unseen(record, slot)
  elseif slot then
    if record.kind == 't' then
      drop_hold(record.product, slot, false, version)
    end
    concluded = give_back(record.product, slot.generation, seen, version)
    if not concluded then
      write_record(ask.n, (early and not record.sure) and 'G' or 'K', slot.generation, record.product)
    end
  end
  if concluded then
    delete_record(ask.n)
  else
    stale = stale + 1
  end
  if record.kind == 't' and (concluded or read_record(ask.n).kind == 'g') then
    local list = ask.listed and committed or released
    list[#list + 1] = record.product
  end
end

if replaces and not read_record(1) then
  unlend(operation, pair)
  local slot, open_still = slot_of(pair[1]), read_record(0)
  if slot and slot_of(pair[2]) and (open_still or slot.flag == 'r') then
    yield_place(pair[1], version)
    if open_still then
      write_record(0, 'K', version, pair[1])
    end
  end
end

if #committed + #released > 0 then
  local kept = {}
  for _, product in ipairs(released) do
    local still = slot_of(product)
    if still and not held_only(still) then
      kept[#kept + 1] = product
    end
  end
  event('settled', 'p', table.concat(committed, ' '), 'r', table.concat(released, ' '), 'u', text(count('u')),
    unpack(#kept > 0 and {'k', table.concat(kept, ' ')} or {}))
end
keep()
if stale + open == 0 then
  redis.call('ZREM', PENDING, member(records))
  return {'settled', count('u'), #committed, #released}
end
if early then
  return {'in_doubt', count('u')}
end
due(records, LOOK_MS)
return {'stale', count('u')}
