-- nginx's side of the two steps: reserve before the request is passed on, settle once its answer is out.
local redis = require "nginx.redis"
local decode = require("cjson.safe").decode

local M = {}
local host, port, prefix, cached, reserve_text, settle_text, reserve_sha, settle_sha
local CAP, KEPT_SECONDS = 3, 604800

local function read(path)
  local file = assert(io.open(path))
  local text = file:read("*a")
  file:close()
  return text
end

function M.setup(redis_host, redis_port, key_prefix, here, with_cache)
  host, port, prefix, cached = redis_host, redis_port, key_prefix, with_cache
  reserve_text, settle_text = read(here .. "/reserve.lua"), read(here .. "/settle.lua")
end

local function hex(bytes)
  return (bytes:gsub(".", function(byte) return string.format("%02x", byte:byte()) end))
end

-- One script call on a pooled connection; the text is sent where Redis does not know the hash.
local function call(sha, text, ...)
  local connection = redis:new()
  connection:set_timeout(250)
  local ok, problem = connection:connect(host, port)
  if not ok then
    return nil, problem
  end
  local reply
  reply, problem = connection:evalsha(sha, 1, ...)
  if not reply and problem and problem:find("NOSCRIPT", 1, true) then
    reply, problem = connection:eval(text, 1, ...)
  end
  if reply == nil then
    return nil, problem
  end
  connection:set_keepalive(60000, 512)
  return reply
end

local function refuse(status, text)
  ngx.status = status
  ngx.header.content_type = "application/problem+json"
  ngx.print(text)
  return ngx.exit(ngx.HTTP_OK)
end

local FULL = '{"type":"about:blank","title":"Forbidden","status":403,"reason":"foreign_cap_reached","cap":3,"used":3}'

function M.reserve()
  if ngx.req.get_method() ~= "POST" then
    return
  end
  ngx.req.read_body()
  local body = decode(ngx.req.get_body_data() or "")
  local product = type(body) == "table" and body.product_id
  if type(product) ~= "string" then
    return refuse(400, '{"status":400,"reason":"body_malformed"}')
  end
  if product:sub(1, 3) == "own" then
    return
  end
  local session = ngx.var.session
  local full = ngx.shared.full
  if cached then
    local members = full:get(session)
    if members and not members:find("," .. product .. ",", 1, true) then
      return refuse(403, FULL)
    end
  end
  if not reserve_sha then
    reserve_sha, settle_sha = hex(ngx.sha1_bin(reserve_text)), hex(ngx.sha1_bin(settle_text))
  end
  local key = prefix .. session
  local reply, problem = call(reserve_sha, reserve_text, key, product, CAP, KEPT_SECONDS, cached and "1" or "0")
  if not reply then
    ngx.log(ngx.ERR, "redis: ", problem)
    return refuse(503, '{"status":503,"reason":"ledger_unavailable"}')
  end
  if reply[1] == 0 then
    if cached and reply[3] == 1 then
      full:set(session, "," .. table.concat(reply, ",", 4) .. ",", 60)
    end
    return refuse(403, FULL)
  end
  ngx.ctx.key, ngx.ctx.product = key, product
end

local function settle(premature, key, product, applied)
  if not premature then
    local reply, problem = call(settle_sha, settle_text, key, product, applied)
    if not reply then
      ngx.log(ngx.ERR, "redis: ", problem)
    end
  end
end

-- Sockets can't be used while a request is logged, so the step goes to a timer that is due at once.
function M.settle()
  local key, status = ngx.ctx.key, ngx.status
  if key and status < 500 then
    ngx.timer.at(0, settle, key, ngx.ctx.product, status < 400 and "1" or "0")
  end
end

return M
