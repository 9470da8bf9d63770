-- Speed and punctuality of each route and direction, by the minute.
-- schedule_deviation_s is negative when late, so delay_s turns it round. Broken speed sensors report -1.
SELECT
  window_start,
  window_end,
  route,
  direction,
  count(DISTINCT operator || '/' || vehicle) AS vehicles,
  count(*) AS messages,
  avg(speed_mps) FILTER (WHERE speed_mps >= 0) AS speed_mean_mps,
  approx_quantile(-schedule_deviation_s, 0.5) AS delay_p50_s,
  approx_quantile(-schedule_deviation_s, 0.95) AS delay_p95_s
FROM telemetry
WHERE journey_type = 'journey' AND temporal = 'ongoing' AND route IS NOT NULL
GROUP BY tumble(event_time, interval '60 seconds'), route, direction
