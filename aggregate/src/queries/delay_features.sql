-- The 16 features of delay.onnx: the recent state of a vehicle on a trip, every 15 seconds.
-- Hour and weekday are those of the last message, UTC; 1970-01-01 was a Thursday, day 0 is Monday.
-- 6.283185307179586 is 2 pi.
SELECT
  window_start,
  window_end,
  operator,
  vehicle,
  avg(schedule_deviation_s) AS deviation_mean_s,
  min(schedule_deviation_s) AS deviation_min_s,
  max(schedule_deviation_s) AS deviation_max_s,
  last_value(schedule_deviation_s ORDER BY event_time) FILTER (WHERE schedule_deviation_s IS NOT NULL)
    AS deviation_last_s,
  count(*) AS rows,
  coalesce(avg(speed_mps), 0) AS speed_mean_mps,
  coalesce(max(speed_mps), 0) AS speed_max_mps,
  count(*) FILTER (WHERE speed_mps < 0.5) / CAST(count(*) AS DOUBLE) AS stopped_fraction,
  count(*) FILTER (WHERE doors_open) / CAST(count(*) AS DOUBLE) AS doors_open_fraction,
  count(stop) / CAST(count(*) AS DOUBLE) AS at_stop_fraction,
  coalesce(max(odometer_m) - min(odometer_m), 0) AS distance_m,
  (CAST(max(event_time) AS BIGINT) - CAST(min(event_time) AS BIGINT)) / 1000.0 AS elapsed_s,
  sin(6.283185307179586 * (CAST(max(event_time) AS BIGINT) % 86400000) / 86400000.0) AS hour_sin,
  cos(6.283185307179586 * (CAST(max(event_time) AS BIGINT) % 86400000) / 86400000.0) AS hour_cos,
  sin(6.283185307179586 * ((CAST(max(event_time) AS BIGINT) / 86400000 + 3) % 7) / 7.0) AS weekday_sin,
  cos(6.283185307179586 * ((CAST(max(event_time) AS BIGINT) / 86400000 + 3) % 7) / 7.0) AS weekday_cos
FROM telemetry
WHERE journey_type = 'journey' AND temporal = 'ongoing'
GROUP BY tumble(event_time, interval '15 seconds'), operator, vehicle
HAVING count(schedule_deviation_s) > 0
