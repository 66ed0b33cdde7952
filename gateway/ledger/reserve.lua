-- reserve: an attach was asked. Every foreign product of the request is held by one record each, or none is.
--
-- ARGV[5] hold in ms: how long the outcome may take before the record counts as left behind
-- ARGV[6] cap, -1 for none   ARGV[7] "1" where this is a retry after a lost answer   ARGV[8…] products
--
-- Reply  {"missing"}                     the session has no ledger: open it first
--        {"ended"}
--        {"held", used, state}           also for a repeated call
--        {"full", used, state, field, value, …}   refused, nothing changed; the session's fields
-- Events refused
-- Keeps  slots that count never exceed the cap by a reserve, except where it falls during the session; a product that
--        has a slot needs no other, but for one whose place went to another product

local hold, cap = tonumber(ARGV[5]), tonumber(ARGV[6])
local names = {'s', 'u', 'w', 'h' .. operation .. '.0'}
local products = {}
for i = 8, #ARGV do
  products[#products + 1] = ARGV[i]
  names[#names + 1] = 'p' .. ARGV[i]
end

local values = redis.call('HMGET', SESSION, unpack(names))
local state, used = values[1], tonumber(values[2]) or 0
if not state then
  return {'missing'}
end
if values[4] then
  return {'held', used, state}
end
if state == 'e' then
  return {'ended'}
end

local needed, yielded = 0, false
for i = 1, #products do
  local slot = values[4 + i]
  if not slot then
    needed = needed + 1
  elseif string.find(slot, '|x|', 1, true) then
    yielded = true
  end
end
local lent, payments = {}, 0
if values[3] then
  lent, payments = lendings(products)
end
if cap >= 0 and (needed + payments > 0 or yielded) and used + needed + payments > cap then
  if not (ARGV[7] == '1' and said_lately('refused')) then
    event('refused', 'p', table.concat(products, ' '), 'u', text(used), 'c', text(cap))
  end
  return everything({'full', used, state})
end

pay(lent)
local version = next_version()
for i = 1, #products do
  local product = products[i]
  take_slot(product, decode_slot(values[4 + i]), version, encode_record(i - 1, 't', version, product))
end
due(#products, hold)
keep()
return {'held', used + needed + payments, state}
