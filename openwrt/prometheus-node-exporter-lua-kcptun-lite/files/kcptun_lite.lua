-- Tunnels of kcptun_lite, from the status files that the service has them write (docs/status.md). The names are those
-- of kcptun-lite-monitor --metrics, so docs/grafana.json shows both.

local cjson = require "cjson.safe"

local DIRECTORY = "/var/run/kcptun-lite"

-- name, type, and where in the status the value is: a path of keys, or a function; labels that are its own
local METRICS = {
  { "kcptun_start_time_seconds", "gauge", function(status) return status.updated - status.uptime_s end },
  { "kcptun_trouble", "gauge", function(status) return status.last_diagnosis ~= "" and 1 or 0 end },
  { "kcptun_sessions", "gauge", "session_count" },
  { "kcptun_connections", "gauge", "streams" },
  { "kcptun_resident_memory_bytes", "gauge", "memory_bytes" },
  { "kcptun_memory_held_bytes", "gauge", "memory.held_bytes" },
  { "kcptun_memory_limit_bytes", "gauge", "memory.limit_bytes" },
  { "kcptun_bytes_total", "counter", "counters.BytesReceived", { direction = "in" } },
  { "kcptun_bytes_total", "counter", "counters.BytesSent", { direction = "out" } },
  { "kcptun_packets_total", "counter", "counters.InPkts", { direction = "in" } },
  { "kcptun_packets_total", "counter", "counters.OutPkts", { direction = "out" } },
  { "kcptun_segments_total", "counter", "counters.InSegs", { direction = "in" } },
  { "kcptun_segments_total", "counter", "counters.OutSegs", { direction = "out" } },
  { "kcptun_retransmitted_segments_total", "counter", "counters.FastRetransSegs", { reason = "skipped" } },
  { "kcptun_retransmitted_segments_total", "counter", "counters.EarlyRetransSegs", { reason = "early" } },
  { "kcptun_retransmitted_segments_total", "counter", "counters.LostSegs", { reason = "timeout" } },
  { "kcptun_receive_errors_total", "counter", "counters.InErrs", { reason = "malformed" } },
  { "kcptun_receive_errors_total", "counter", "counters.InCsumErrors", { reason = "checksum" } },
  { "kcptun_receive_errors_total", "counter", "counters.KCPInErrors", { reason = "kcp" } },
  { "kcptun_send_drops_total", "counter", "counters.SendDrops" },
  { "kcptun_fec_recovered_packets_total", "counter", "counters.FECRecovered" },
}

local SESSION_METRICS = {
  { "kcptun_session_rtt_seconds", "rtt_ms", 0.001 },
  { "kcptun_session_rtt_least_seconds", "rtt_least_ms", 0.001 },
  { "kcptun_session_loss_ratio", "loss", 1 },
  { "kcptun_session_line_bytes_per_second", "line_bytes_s", 1 },
  { "kcptun_session_connections", "streams", 1 },
}

local function contents(path)
  local file = io.open(path, "rb")
  local text = file and file:read("*a")
  if file then
    file:close()
  end
  return text or ""
end

local function escaped(text)
  return (tostring(text):gsub("[\\\"]", "\\%0"):gsub("\n", "\\n"))
end

-- The status of a tunnel that runs: a file may be that of a process that was killed.
local function status_of(path)
  local status = cjson.decode(contents(path))
  if type(status) ~= "table" or status.schema ~= 2 or type(status.pid) ~= "number" then
    return nil
  end
  local name = contents(string.format("/proc/%d/comm", status.pid))
  return name:sub(1, 11) == "kcptun-lite" and status or nil
end

local function lookup(status, where)
  if type(where) == "function" then
    return where(status)
  end
  local value = status
  for key in where:gmatch("[^.]+") do
    value = type(value) == "table" and value[key] or nil
  end
  return value
end

local function labels_of(tunnel, own)
  local labels = { tunnel = escaped(tunnel) }
  for label, value in pairs(own or {}) do
    labels[label] = escaped(value)
  end
  return labels
end

-- What is no number, null among it, is left out.
local function print_if_known(output, labels, value)
  if type(value) == "number" then
    output(labels, value)
  end
end

local function scrape()
  local tunnels = {}
  local up = metric("kcptun_up", "gauge")
  local list = io.popen("ls -1 " .. DIRECTORY .. "/*.json 2>/dev/null")

  for path in list:lines() do
    local name = path:match("([^/]+)%.json$")
    local status = status_of(path)
    up(labels_of(name), status and 1 or 0)
    if status then
      tunnels[#tunnels + 1] = { name = name, status = status }
    end
  end
  list:close()

  local info = metric("kcptun_tunnel_info", "gauge")
  for _, tunnel in ipairs(tunnels) do
    info(labels_of(tunnel.name, { role = tunnel.status.role, version = tunnel.status.version }), 1)
  end

  local output, last
  for _, entry in ipairs(METRICS) do
    local name, kind, where, own = unpack(entry)
    if name ~= last then
      output, last = metric(name, kind), name
    end
    for _, tunnel in ipairs(tunnels) do
      print_if_known(output, labels_of(tunnel.name, own), lookup(tunnel.status, where))
    end
  end

  for _, entry in ipairs(SESSION_METRICS) do
    local name, key, factor = unpack(entry)
    output = metric(name, "gauge")
    for _, tunnel in ipairs(tunnels) do
      for _, session in ipairs(tunnel.status.sessions) do
        local value = session[key]
        local labels = labels_of(tunnel.name, { remote = session.remote, session = session.conv })
        print_if_known(output, labels, type(value) == "number" and value * factor)
      end
    end
  end
end

return { scrape = scrape }
