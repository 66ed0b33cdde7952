-- release: the upstream answered no, or was never asked. What this operation took comes back, unless another
-- operation holds it or the upstream has it.
--
-- ARGV[5] number of records
--
-- Reply  {"released", used}
-- Events none
-- Keeps  rule 5: a record that is gone is left alone

local records = tonumber(ARGV[5])
local state, lendings_pending, found, products = own_records(records)
if not state then
  return {'released', 0}
end
local version = next_version()
if lendings_pending then
  unlend(operation, products)
end
for n = 0, records - 1 do
  local record = found[n]
  if record then
    if record.kind == 't' then
      drop_hold(record.product, slot_of(record.product), false, version)
    elseif record.kind == 's' then
      add('g', '-1')
    end
    delete_record(n)
  end
end
redis.call('ZREM', PENDING, member(records))
keep()
return {'released', count('u')}
