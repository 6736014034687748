-- wrk -s handouts.lua URL -- METHOD TARGET AUTHORIZATION
-- METHOD post: posts each line of the file TARGET in turn
--        get:  gets the path TARGET
local threads = 0

function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end

function init(args)
   local method, target = args[1], args[2]
   local headers = {["Content-Type"] = "application/json", ["Authorization"] = args[3]}
   if method == "get" then
      local get = wrk.format("GET", target, headers)
      request = function() return get end
   else
      local requests, at = {}, 0
      for body in io.lines(target) do
         requests[#requests + 1] = wrk.format("POST", nil, headers, body)
      end
      -- Each thread starts at another line.
      at = number * 7919 % #requests
      request = function()
         at = at % #requests + 1
         return requests[at]
      end
   end
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format('{"requests":%d,"seconds":%f,"failed":%d,"p50_ms":%f,"p99_ms":%f}\n',
      summary.requests, summary.duration / 1e6,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
