-- The ledger of one session: its keys, its encoding, its transitions. Every script of this folder is what it uses of
-- this text, followed by its own; each runs atomically over a whole batch.
--
-- THEORY
-- The upstream decides what is attached; the ledger decides how many distinct foreign products may be tried. A
-- product has at most one SLOT in a session. An operation (an attach, a detach, a replace, a start) leaves a RECORD
-- before it is forwarded and loses it when its outcome is known. A slot lives as long as a record HOLDS it, or the
-- product is attached, or it was used while the session was live. So a crash between any two steps leaves a record,
-- the index of pending operations leads to it, and the slot stays taken until the upstream's list has answered.
--
-- The list shows what is, not what was. Before the start that is enough: a product that is not there does not count.
-- Live, a product counts that came and went again; so an attach in doubt that the list does not show was not applied
-- only if nothing may have taken the product away meanwhile. That is why every detach leaves a record, also one that
-- gives no slot back and one of a product without a slot.
--
-- Confirmations cross. An attach may be applied before a detach and be confirmed after it. Where a detach is concluded
-- while its product is held, the slot remembers it (d), and the next confirmation asks the list before it is believed.
--
-- A replace passes one place to another product. Where nobody can say at once whether the old product counts all the
-- same, two slots stand on that place: the old one (x) keeps others out, and lets its own product in only where the cap
-- has room for both.
--
-- The ledger stores facts, never verdicts: the cap comes with the call.
--
-- RULES FOR WHOEVER EDITS THIS
-- 1. `u` is the number of slots less the number of pending lendings. Only `take_slot`, `free_slot`, `lend` and `unlend`
--    change it.
-- 2. A slot is given back (`free_slot`) only where nothing holds it and the upstream is known not to have it, and
--    in a session that is known to be preparing, or for a product that was never confirmed.
-- 3. Whoever can't conclude leaves a record in doubt: the reconciler asks the list. Never guess.
-- 4. Every write of a slot or of the state raises `v`; a slot remembers the `v` of its last reserve, commit or detach
--    as its generation. What was read before a question to the upstream may be acted on afterwards only where the
--    generation is still the same.
-- 5. A step may be repeated: a record that is gone was settled, by this operation (then its event is among the latest)
--    or by the reconciler.
-- 6. A function stands between blank lines, has none, and comes after those that it calls: a script gets only those that
--    it uses (`scripts.py`), since each is made anew at each run.
--
-- KEYS of every script that has a session (all in one hash slot: the tag is the session's bucket)
--   KEYS[1] session   hash, see below; expires `retention` after its last write
--   KEYS[2] pending   sorted set: member "<session> <operation> <records>", score the time in ms when it is due
--   KEYS[3] events    capped stream: s session, e event, o operation, and what the event adds
-- ARGV of every such script
--   ARGV[1] session id   ARGV[2] operation id   ARGV[3] retention in ms   ARGV[4] stream entries
--
-- FIELDS of the session's hash
--   s             state: p preparing, l live, e ended
--   u             slots that count          v  writes so far
--   w             pending lendings          g  pending starts          (both absent when 0)
--   p<product>    slot "since|generation|flag|holders": since in ms; flag h held only, d held only and detached before
--                 the start meanwhile, a attached, r removed while it counts, x replaced, and may count; holders = how
--                 many records take it
--   w<product>    the operation that lends or borrows this product's slot
--   h<op>.<n>     record n of an operation: kind, generation, ":", product. Kinds: t takes the slot, g gives it back,
--                 s starts the session. In upper case: in doubt. K: has given it, only when is not known
--
-- TRANSITIONS of a slot. Holders in brackets; h and d without a holder are given back. "Look": a record in doubt that is
-- due at once. "Live": known to be, or maybe.
--   asked                     none      h[n]        d[n]        a[n]        r[n], x[n]
--   reserve                   h[1]      h[n+1]      d[n+1]      a[n+1]      r[n+1]
--   commit, applied           -         a[n-1]      a[n], look  a[n-1]      a[n-1]
--     its record is gone      a, look   a, look     a, look     a[n]        a, look
--   release, or not applied   none      h[n-1]      d[n-1]      a[n-1]      r[n-1]
--   detached, live            none      r[n]        r[n]        r[n]        r[n]
--     before the start        none      d[n]        d[n]        d[n]        -
--     changed, or not known   none      a[n], look  a[n], look  a[n], look  r[n]
--     not found               none      h[n]        d[n]        a[n], look  r[n]
--   attach listed             -         a[n-1]      a[n-1]      a[n-1]      a[n-1]
--     not, before the start   -         h[n-1]      d[n-1]      d[n-1]      -
--     not, live               -         h[n-1] (1)  d[n-1] (1)  r[n-1]      r[n-1]
--   detach listed             none      a[n]        a[n]        a[n]        a[n]
--     not, before the start   none      d[n]        d[n]        d[n]        -
--     not, live               none      h[n] (2)    d[n] (2)    r[n]        r[n]
--   adopted                   a[0]      a[n]        a[n]        a[n]        a[n]
--     as removed              x[0]      h[n]        d[n]        a[n]        r[n]
-- x goes where r goes and stays x where that stays r; before the start it goes where a goes. A replaced product whose slot
-- was lent is x where it would be a or r.
-- (1) r[n-1] if a detach of it is in doubt, and look again if one is on its way
-- (2) r[n] if an attach of it is in doubt, and look again if one is on its way

local SESSION, PENDING, EVENTS = KEYS[1], KEYS[2], KEYS[3]
local session_id, operation = ARGV[1], ARGV[2]
local LOOK_MS = 200

-- Asked for once, and only where it is needed: it costs as much as a write.
local clock
local function now()
  clock = clock or redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

-- A time in ms is more than a C long may hold: in two parts.
local function time_text(ms)
  return string.format('%d%03d', ms / 1000, ms % 1000)
end

-- Of a count. What `..` and `redis.call` make a string of a number by takes four times as long: both are given strings.
local function text(number)
  if number >= 0 and number <= 9 then
    return string.sub('0123456789', number + 1, number + 1)
  end
  return string.format('%d', number)
end

local function field(name)
  return redis.call('HGET', SESSION, name) or nil
end

local function count(name)
  return tonumber(field(name)) or 0
end

-- `by` is a string.
local function add(name, by)
  if redis.call('HINCRBY', SESSION, name, by) == 0 and name ~= 'u' then
    redis.call('HDEL', SESSION, name)
  end
end

local function decode_slot(value)
  if not value then
    return nil
  end
  local since, generation, flag, holders = string.match(value, '^(%d+)|(%d+)|(%a)|(%d+)$')
  return {since = since, generation = generation, flag = flag, holders = tonumber(holders)}
end

local function slot_of(product)
  return decode_slot(redis.call('HGET', SESSION, 'p' .. product))
end

-- `...`: further fields and values to be written with it.
local function write_slot(product, slot, ...)
  redis.call('HSET', SESSION, 'p' .. product,
    slot.since .. '|' .. slot.generation .. '|' .. slot.flag .. '|' .. text(slot.holders), ...)
end

-- A string, as every generation is: they are only compared.
local function next_version()
  return text(redis.call('HINCRBY', SESSION, 'v', '1'))
end

-- The slot that one more record holds, made where there is none; `...`: as in `write_slot`.
local function take_slot(product, slot, version, ...)
  if not slot then
    slot = {since = time_text(now()), flag = 'h', holders = 0}
    add('u', '1')
  end
  slot.holders = slot.holders + 1
  slot.generation = version
  write_slot(product, slot, ...)
end

local function free_slot(product)
  redis.call('HDEL', SESSION, 'p' .. product)
  add('u', '-1')
end

-- Whether the slot lives by its holders alone: the upstream is not known to have the product, nor to have had it while
-- that counted.
local function held_only(slot)
  return slot.flag == 'h' or slot.flag == 'd'
end

-- One record less holds the slot, if there is one; `applied`: the upstream has the product.
local function drop_hold(product, slot, applied, version)
  if not slot then
    return
  end
  slot.holders = math.max(0, slot.holders - 1)
  if applied then
    slot.flag = 'a'
    slot.generation = version
  end
  if held_only(slot) and slot.holders == 0 then
    free_slot(product)
  else
    write_slot(product, slot)
  end
end

-- The upstream has, or had, the product: whatever the list says next, its slot does not live by its holders alone.
local function confirm(product, slot, version)
  slot.flag = 'a'
  slot.generation = version
  write_slot(product, slot)
end

-- A replace before the start lends the old product's slot to the new one: two slots that count as one, until the
-- outcome is known or somebody else wants either of them and pays for it.
local function lend(old, new)
  redis.call('HSET', SESSION, 'w' .. old, operation, 'w' .. new, operation)
  add('u', '-1')
  add('w', '1')
end

-- Returns whether it was lent.
local function unlend(op, products)
  local ended = 0
  for _, product in ipairs(products) do
    if field('w' .. product) == op then
      redis.call('HDEL', SESSION, 'w' .. product)
      ended = 1
    end
  end
  if ended == 1 then
    add('w', '-1')
    add('u', '1')
  end
  return ended == 1
end

-- Two slots stand on the place of a replaced product: the old one's is no entitlement beyond the cap.
local function yield_place(product, version)
  local slot = slot_of(product)
  if slot then
    slot.flag = 'x'
    slot.generation = version
    write_slot(product, slot)
  end
end

-- The operation's products that other operations lend: op → its products, and how many such operations.
local function lendings(products)
  local found, n = {}, 0
  if not field('w') then
    return found, n
  end
  for _, product in ipairs(products) do
    local op = field('w' .. product)
    if op and op ~= operation and not found[op] then
      found[op] = true
      n = n + 1
    end
  end
  return found, n
end

local function record_products(op, records)
  local products = {}
  for n = 0, records - 1 do
    local record = field('h' .. op .. '.' .. text(n))
    if record then
      products[#products + 1] = string.match(record, '^%a%d*:(.*)$')
    end
  end
  return products
end

-- Whoever needs a lent slot for itself has paid (checked against the cap): both products count from now on.
local function pay(found)
  for op in pairs(found) do
    unlend(op, record_products(op, 2))
  end
end

local function member(records)
  return session_id .. ' ' .. operation .. ' ' .. text(records)
end

local function due(records, in_ms)
  redis.call('ZADD', PENDING, time_text(now() + in_ms), member(records))
  redis.call('PEXPIRE', PENDING, ARGV[3])
end

local function record_name(n)
  return 'h' .. operation .. '.' .. text(n)
end

-- The field and the value of a record.
local function encode_record(n, kind, generation, product)
  return record_name(n), kind .. generation .. ':' .. product
end

local function write_record(n, kind, generation, product)
  redis.call('HSET', SESSION, encode_record(n, kind, generation, product))
end

local function decode_record(value)
  if not value then
    return nil
  end
  local kind, generation, product = string.match(value, '^(%a)(%d*):(.*)$')
  local lower = kind == 'K' and 'g' or string.lower(kind)
  return {kind = lower, doubt = kind ~= lower, sure = kind == 'K', generation = generation, product = product}
end

local function read_record(n)
  return decode_record(field(record_name(n)))
end

-- In one read: the session's state, its pending lendings (false for none), this operation's records by number, and
-- their products.
local function own_records(records)
  local names = {'s', 'w'}
  for n = 0, records - 1 do
    names[n + 3] = record_name(n)
  end
  local values = redis.call('HMGET', SESSION, unpack(names))
  local found, products = {}, {}
  for n = 0, records - 1 do
    local record = decode_record(values[n + 3])
    if record then
      found[n] = record
      products[#products + 1] = record.product
    end
  end
  return values[1], values[2], found, products
end

local function delete_record(n)
  redis.call('HDEL', SESSION, record_name(n))
end

local function event(kind, ...)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', ARGV[4], '*', 's', session_id, 'e', kind, 'o', operation, ...)
  redis.call('PEXPIRE', EVENTS, ARGV[3])
end

-- Whether this operation's event is among the bucket's latest: how a step that leaves nothing else behind (a refusal, a
-- commit) knows that it is repeated. Decisions lie between the events, so more is looked through.
local function said_lately(kind)
  for _, entry in ipairs(redis.call('XREVRANGE', EVENTS, '+', '-', 'COUNT', 128)) do
    local said = {}
    for i = 1, #entry[2], 2 do
      said[entry[2][i]] = entry[2][i + 1]
    end
    if said.o == operation and said.e == kind then
      return true
    end
  end
  return false
end

local function keep()
  redis.call('PEXPIRE', SESSION, ARGV[3])
end

-- The session as its scripts' callers read it: every field and value in turn.
local function everything(answer)
  for _, item in ipairs(redis.call('HGETALL', SESSION)) do
    answer[#answer + 1] = item
  end
  return answer
end

local function is_live()
  return field('s') ~= 'p' or field('g') ~= nil
end

-- A live session that somebody started past the gateway: what the upstream says of it outweighs what we thought.
local function learn_state(seen)
  if seen == 'l' and field('s') == 'p' then
    next_version()
    redis.call('HSET', SESSION, 's', 'l')
    event('started', 'u', text(count('u')))
  elseif seen == 'e' and field('s') ~= 'e' then
    next_version()
    redis.call('HSET', SESSION, 's', 'e')
    event('ended', 'u', text(count('u')))
  end
end

-- The upstream had a product and no longer has it. True where that is concluded, its slot given back or used for good;
-- else a record must stay and look again.
local function give_back(product, asked_generation, seen, version)
  local slot = slot_of(product)
  if not slot then
    return true
  end
  local unchanged = slot.generation == asked_generation
  if seen == 'l' or seen == 'e' or field('s') ~= 'p' then
    slot.flag = slot.flag == 'x' and 'x' or 'r'
  elseif seen ~= 'p' or field('g') or not unchanged or field('w' .. product) then
    if held_only(slot) then
      confirm(product, slot, version)
    end
    return false
  elseif slot.holders == 0 then
    free_slot(product)
    return true
  else
    slot.flag = 'd'
  end
  slot.generation = version
  write_slot(product, slot)
  return true
end
