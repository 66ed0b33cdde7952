-- doubt: nobody knows whether the upstream applied the operation, or its gateway is gone. The records stay, marked,
-- and are due once the upstream can no longer apply them.
--
-- ARGV[5] late apply in ms   ARGV[6] "1" where the operation's own gateway asks, "0" for the reconciler
-- ARGV[7…] pairs: kind (t, g, s), product
--
-- Reply  {"missing"}  the ledger has lost the session: open it, and say so again
--        {"in_doubt", used}  also where a reconciler has marked it before: the time begins anew
--        {"gone", used}      a reconciler asks of an operation that was settled meanwhile
-- Events in_doubt, once
-- Keeps  a request that was sent and may still be applied is held, even where its record was settled too early

local own, records = ARGV[6] == '1', (#ARGV - 6) / 2
if not field('s') then
  return {'missing'}
end
local marked, again = {}, false
for n = 0, records - 1 do
  local kind, product = ARGV[7 + 2 * n], ARGV[8 + 2 * n]
  local record = read_record(n)
  again = again or (own and record ~= nil and record.doubt)
  if record and not record.doubt then
    write_record(n, string.upper(kind), record.generation, product)
    marked[#marked + 1] = product
  elseif not record and own then
    local version = next_version()
    if kind == 't' then
      take_slot(product, slot_of(product), version)
    elseif kind == 's' then
      add('g', '1')
    end
    write_record(n, string.upper(kind), version, product)
    marked[#marked + 1] = product
  end
end
if #marked + (again and 1 or 0) == 0 then
  return {'gone', count('u')}
end
due(records, tonumber(ARGV[5]))
if #marked > 0 then
  event('in_doubt', 'p', table.concat(marked, ' '), 'u', text(count('u')))
end
keep()
return {'in_doubt', count('u')}
