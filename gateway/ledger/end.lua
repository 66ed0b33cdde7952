-- end: the upstream has ended the session. No more attaches; the count is kept for the retention time.
--
-- Reply  {"missing"} · {"ended", used}
-- Events ended, once

if not field('s') then
  return {'missing'}
end
if field('s') ~= 'e' then
  learn_state('e')
  keep()
end
return {'ended', count('u')}
