//! Recorded MQTT messages: `<receive time> <topic> <payload>` a line, where topics may contain spaces.

use jiff::Timestamp;
use schemas::EpochMs;

/// A message of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// When it was received.
    pub received_at_ms: EpochMs,
    /// MQTT topic.
    pub topic: String,
    /// Payload.
    pub payload: String,
}

/// A line that is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}; expected `<receive time> <topic> {{<payload>}}`")]
pub struct Error {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// Reads a recording; empty lines are skipped.
pub fn parse(text: &str) -> Result<Vec<Recorded>, Error> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| parse_line(line).map_err(|problem| Error { line: i + 1, problem })).collect()
}

fn parse_line(line: &str) -> Result<Recorded, String> {
    let (time, rest) = line.split_once(' ').ok_or("no space after the receive time")?;
    let at: Timestamp = time.parse().map_err(|_| format!("`{time}` is not a timestamp"))?;
    let split = rest.find(" {").ok_or("no payload that starts with ` {`")?;
    Ok(Recorded {
        received_at_ms: at.as_millisecond(),
        topic: rest[..split].to_owned(),
        payload: rest[split + 1..].to_owned(),
    })
}

/// When each message is due at normal speed, in milliseconds after the first: as received, but a silence of more than
/// `max_gap_ms` is cut to that (recordings of several windows have gaps of months), and where the clock steps back
/// (windows that overlap) a message is due with the one before it.
pub fn timeline(messages: &[Recorded], max_gap_ms: i64) -> Vec<EpochMs> {
    let mut due_ms = 0;
    let mut before = messages.first().map_or(0, |m| m.received_at_ms);
    messages
        .iter()
        .map(|message| {
            due_ms += (message.received_at_ms - before).clamp(0, max_gap_ms.max(0));
            before = message.received_at_ms;
            due_ms
        })
        .collect()
}

/// How fast a recording is published.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// This many times as fast as it was received.
    Times(f64),
    /// As fast as the broker acknowledges.
    Max,
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Rate::Max);
        }
        let factor = text.strip_suffix('x').and_then(|n| n.parse::<f64>().ok());
        match factor {
            Some(factor) if factor > 0.0 && factor.is_finite() => Ok(Rate::Times(factor)),
            _ => Err(format!("`{text}` is not a rate; write `1x`, `10x` or `max`")),
        }
    }
}

impl Rate {
    /// Milliseconds after the first message at which this one is due. A recording's clock may step back: then at once.
    pub fn due_ms(self, first_ms: EpochMs, at_ms: EpochMs) -> u64 {
        match self {
            Rate::Max => 0,
            Rate::Times(factor) => ((at_ms - first_ms).max(0) as f64 / factor) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn topics_may_contain_spaces() {
        let text = "2018-10-09T04:55:00.123Z /hfp/v1/journey/ongoing/bus/0018/00423/1004 4/1/Kamppi (M)/07:00/1/3/60;24/1 {\"VP\":{\"desi\":\"4 {\"}}\n\n";
        let all = parse(text).unwrap();
        assert_eq!(all.len(), 1);
        assert!(all[0].topic.ends_with("/Kamppi (M)/07:00/1/3/60;24/1"));
        assert_eq!(all[0].payload, "{\"VP\":{\"desi\":\"4 {\"}}");
    }

    #[test]
    fn faults_name_their_line() {
        let error = parse("2018-10-09T04:55:00Z /a {}\nnonsense").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(parse("yesterday /a {}").unwrap_err().to_string().contains("`yesterday` is not a timestamp"));
    }

    #[test]
    fn gaps_are_cut_and_steps_back_are_no_time() {
        let at = |s: &str| format!("2024-02-13T16:{s}Z /a {{}}");
        let text = ["00:00", "00:02.5", "40:00", "39:00", "39:01"].map(at).join("\n");
        assert_eq!(timeline(&parse(&text).unwrap(), 10_000), [0, 2_500, 12_500, 12_500, 13_500]);
        assert!(timeline(&[], 1).is_empty());
    }

    #[test]
    fn rates() {
        assert_eq!("10x".parse(), Ok(Rate::Times(10.0)));
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert!("0x".parse::<Rate>().is_err() && "fast".parse::<Rate>().is_err());
        assert_eq!(Rate::Times(10.0).due_ms(1_000, 6_000), 500);
        assert_eq!(Rate::Times(1.0).due_ms(1_000, 0), 0);
    }
}
