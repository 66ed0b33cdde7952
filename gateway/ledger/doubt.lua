-- doubt: nobody knows whether the upstream applied the operation, or its gateway is gone. The records stay, marked,
-- and are due once the upstream can no longer apply them.
--
-- ARGV[5] late apply in ms   ARGV[6] "1" where the operation's own gateway asks, "0" for the reconciler
-- ARGV[7…] pairs: kind (t, g, s), product
--
-- Reply  {"missing"}  the ledger has lost the session: open it, and say so again
--        {"in_doubt" or "gone", used}
-- Events in_doubt
-- Keeps  a request that was sent and may still be applied is held, even where its record was settled too early

local own, records = ARGV[6] == '1', (#ARGV - 6) / 2
if not field('s') then
  return {'missing'}
end
local marked = {}
for n = 0, records - 1 do
  local kind, product = ARGV[7 + 2 * n], ARGV[8 + 2 * n]
  local record = read_record(n)
  if record and not record.doubt then
    write_record(n, string.upper(kind), record.generation, product)
    marked[#marked + 1] = product
  elseif not record and own then
    local version = next_version()
    if kind == 't' then
      take_slot(product, slot_of(product), version, true)
    elseif kind == 's' then
      add('g', 1)
    end
    write_record(n, string.upper(kind), version, product)
    marked[#marked + 1] = product
  end
end
if #marked == 0 then
  return {'gone', count('u')}
end
due(records, tonumber(ARGV[5]))
event('in_doubt', 'p', table.concat(marked, ' '), 'u', text(count('u')))
keep()
return {'in_doubt', count('u')}
