-- settle: the upstream's list, asked after the claim, says what became of an operation in doubt.
--
-- ARGV[5] lease (the fence)   ARGV[6] number of records   ARGV[7] state of the session, looked at after the list
-- ARGV[8…] triples: record number, the slot's generation before the list was asked ("" where it had none),
--          "1" where the list has the product, else "0"
--
-- Reply  {"lost"}                 another reconciler has it, or it was settled
--        {"settled", used, committed, released}   how many products each
--        {"stale", used}          something moved since the list was asked: due again soon
-- Events settled, with what was committed (p) and what was released (r)
-- Keeps  rules 2 and 4

local records, seen = tonumber(ARGV[6]), ARGV[7]
if redis.call('ZSCORE', PENDING, member(records)) ~= ARGV[5] then
  return {'lost'}
end
if not field('s') then
  redis.call('ZREM', PENDING, member(records))
  return {'settled', 0, 0, 0}
end
learn_state(seen)
local version = next_version()
local committed, released, stale = {}, {}, 0
unlend(operation, record_products(operation, records))

for i = 8, #ARGV, 3 do
  local n, listed = tonumber(ARGV[i]), ARGV[i + 2] == '1'
  local record = read_record(n)
  if record and record.kind == 's' then
    add('g', -1)
    delete_record(n)
  elseif record then
    local slot = slot_of(record.product)
    local generation = slot and slot.generation
    if slot and text(generation) ~= ARGV[i + 1] then
      stale = stale + 1
    else
      if record.kind == 't' then
        drop_hold(record.product, listed, version)
      end
      slot = slot_of(record.product)
      local concluded = true
      if slot and listed and slot.flag ~= 'a' then
        slot.flag = 'a'
        write_slot(record.product, slot)
      elseif slot and not listed and slot.flag ~= 'h' then
        concluded = give_back(record.product, generation, seen)
      end
      if concluded then
        delete_record(n)
      else
        stale = stale + 1
        write_record(n, 'G', generation, record.product)
      end
      if record.kind == 't' then
        local list = listed and committed or released
        list[#list + 1] = record.product
      end
    end
  end
end

if stale > 0 then
  due(records, LOOK_MS)
  return {'stale', count('u')}
end
redis.call('ZREM', PENDING, member(records))
if #committed + #released > 0 then
  event('settled', 'p', table.concat(committed, ' '), 'r', table.concat(released, ' '), 'u', text(count('u')))
end
keep()
return {'settled', count('u'), #committed, #released}
