-- Vehicles heard of by operator and mode, by the minute, and how long their messages took to us.
SELECT
  window_start,
  window_end,
  operator,
  mode,
  count(DISTINCT vehicle) AS vehicles,
  count(*) AS messages,
  count(*) FILTER (WHERE lat IS NULL OR lon IS NULL) AS without_position,
  approx_quantile(CAST(received_at AS BIGINT) - CAST(event_time AS BIGINT), 0.5) AS transit_p50_ms,
  approx_quantile(CAST(received_at AS BIGINT) - CAST(event_time AS BIGINT), 0.99) AS transit_p99_ms
FROM telemetry
GROUP BY tumble(event_time, interval '60 seconds'), operator, mode
