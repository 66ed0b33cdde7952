-- settle: the upstream's list says what became of an operation in doubt.
--
-- Asked after a claim, when the upstream can no longer apply the operation, the list is the last word. Asked earlier (no
-- lease), it is believed only where it shows that the operation was applied: what it does not show may still come.
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
-- Events settled, with what was committed (p) and what was released (r)
-- Keeps  rules 2 and 4

local records, seen, early = tonumber(ARGV[6]), ARGV[7], ARGV[5] == ''
if not early and redis.call('ZSCORE', PENDING, member(records)) ~= ARGV[5] then
  return {'lost'}
end
if not field('s') then
  redis.call('ZREM', PENDING, member(records))
  return {'settled', 0, 0, 0}
end

-- Whether another operation may have taken the product away: then a list without it does not say that it never was there.
local function given_elsewhere(product)
  local fields = redis.call('HGETALL', SESSION)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 1) == 'h' and string.find(fields[i], 'h' .. operation .. '.', 1, true) ~= 1 then
      local kind, other = string.match(fields[i + 1], '^(%a)%d*:(.*)$')
      if (kind == 'g' or kind == 'G') and other == product then
        return true
      end
    end
  end
  return false
end

local asked, open = {}, 0
for i = 8, #ARGV, 3 do
  local n, listed = tonumber(ARGV[i]), ARGV[i + 2] == '1'
  local record = read_record(n)
  if record then
    local shown = (record.kind == 't' and listed) or (record.kind == 'g' and not listed and seen == 'p')
      or (record.kind == 's' and seen ~= 'p')
    if not early or (record.doubt and shown) then
      asked[#asked + 1] = {n = n, record = record, listed = listed, generation = ARGV[i + 1]}
    else
      open = open + 1
    end
  end
end
if early and #asked == 0 then
  return {'in_doubt', count('u')}
end

learn_state(seen)
local version = next_version()
local committed, released, stale = {}, {}, 0
unlend(operation, record_products(operation, records))

for _, ask in ipairs(asked) do
  local record, slot = ask.record, slot_of(ask.record.product)
  if record.kind == 's' then
    add('g', -1)
    delete_record(ask.n)
  elseif slot and text(slot.generation) ~= ask.generation then
    stale = stale + 1
  else
    local generation = slot and slot.generation
    if slot and slot.flag == 'h' and not ask.listed and is_live()
      and (record.kind == 'g' or given_elsewhere(record.product)) then
      slot.flag = 'r'
      write_slot(record.product, slot)
    end
    if record.kind == 't' then
      drop_hold(record.product, ask.listed, version)
    end
    slot = slot_of(record.product)
    local concluded = true
    if slot and ask.listed and slot.flag ~= 'a' then
      slot.flag = 'a'
      write_slot(record.product, slot)
    elseif slot and not ask.listed and slot.flag ~= 'h' then
      concluded = give_back(record.product, generation, seen)
    end
    if concluded then
      delete_record(ask.n)
    else
      stale = stale + 1
      write_record(ask.n, 'G', generation, record.product)
    end
    if record.kind == 't' then
      local list = ask.listed and committed or released
      list[#list + 1] = record.product
    end
  end
end

if #committed + #released > 0 then
  event('settled', 'p', table.concat(committed, ' '), 'r', table.concat(released, ' '), 'u', text(count('u')))
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
