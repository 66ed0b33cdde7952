-- export: what a consumer group is to write next from a bucket's stream. Asking again gives what was read and not
-- acknowledged only after a while, to whoever asks then: a group has one consumer, and its exporters need no names.
--
-- Before anything is read that may not be what came next, the group's position is compared with what the stream still
-- has. Nothing is read until the exporter has written down that something is missing, so that no crash hides it.
--
-- KEYS[1] events
-- ARGV[1] group   ARGV[2] entries at most   ARGV[3] in ms, how long another exporter may take to acknowledge
-- ARGV[4] "1" to make the group where there is none: the exporter has told what that means
-- ARGV[5] the gap that the exporter has told of, as "<after> <before>", or ""
--
-- Reply  {"absent", now in ms}         no stream, or one that has no such group
--        {"gap", after, before}        what came right after the group's position is gone: trimmed
--        {"read", position, entries, lost}   the group's position after this; entries as XRANGE gives them; ids of
--                                      entries that an exporter was given, never acknowledged, and that are trimmed now
-- Events none

local STREAM, group, limit, idle = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]

local function position_of()
  if redis.call('EXISTS', STREAM) == 0 then
    return nil
  end
  for _, described in ipairs(redis.call('XINFO', 'GROUPS', STREAM)) do
    local found = {}
    for i = 1, #described, 2 do
      found[described[i]] = described[i + 1]
    end
    if found.name == group then
      return found['last-delivered-id'], found.pending
    end
  end
end

local position, pending = position_of()
if not position then
  if ARGV[4] ~= '1' or redis.call('EXISTS', STREAM) == 0 then
    local clock = redis.call('TIME')
    return {'absent', clock[1] * 1000 + math.floor(clock[2] / 1000)}
  end
  redis.call('XGROUP', 'CREATE', STREAM, group, '0')
  position, pending = '0-0', 0
end

local oldest = redis.call('XRANGE', STREAM, '-', '+', 'COUNT', 1)[1]
if oldest and position ~= '0-0' and #redis.call('XRANGE', STREAM, position, position) == 0 then
  -- After a trim to less than the position, which no writer of ours does, the position may lie behind everything.
  local later = redis.call('XRANGE', STREAM, '(' .. position, '+', 'COUNT', 1)[1]
  if later and later[1] == oldest[1] and ARGV[5] ~= position .. ' ' .. oldest[1] then
    return {'gap', position, oldest[1]}
  end
end

local entries, lost = {}, {}
if pending > 0 then
  for _, waiting in ipairs(redis.call('XPENDING', STREAM, group, 'IDLE', idle, '-', '+', limit)) do
    local entry = redis.call('XRANGE', STREAM, waiting[1], waiting[1])[1]
    if entry then
      redis.call('XCLAIM', STREAM, group, 'exporter', idle, waiting[1], 'JUSTID')
      entries[#entries + 1] = entry
    else
      lost[#lost + 1] = waiting[1]
    end
  end
end
if #entries < limit then
  local read = redis.call('XREADGROUP', 'GROUP', group, 'exporter', 'COUNT', limit - #entries, 'STREAMS', STREAM, '>')
  for _, entry in ipairs(read and read[1][2] or {}) do
    entries[#entries + 1] = entry
    position = entry[1]
  end
end
return {'read', position, entries, lost}
