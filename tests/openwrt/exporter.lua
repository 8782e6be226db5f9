-- Stand-in for prometheus-node-exporter-lua: what it gives to a collector, `metric`, and how it prints. The collector is
-- the first argument.

local function print_metric(name, labels, value)
  local pairs_of_labels = {}
  for label, text in pairs(labels or {}) do
    pairs_of_labels[#pairs_of_labels + 1] = label .. '="' .. text .. '"'
  end
  print(string.format("%s{%s} %s", name, table.concat(pairs_of_labels, ","), value))
end

function metric(name, kind, labels, value)
  print("# TYPE " .. name .. " " .. kind)
  local output = function(own, number) print_metric(name, own, number) end
  if value then
    output(labels, value)
  end
  return output
end

dofile(arg[1]).scrape()
