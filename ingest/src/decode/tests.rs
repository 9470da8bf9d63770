#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use proptest::prelude::*;
use schemas::Message;
use schemas::telemetry::Source;
use serde_json::{Value, json};

const RECEIVED: EpochMs = 1_707_841_980_005;
const JOURNEY: &str = "/hfp/v2/journey/ongoing/vp/bus/0018/01029/5520/1/Martinlaakso/17:35/4150208/5/60;24/28/65/93";
const DEADRUN: &str = "/hfp/v2/deadrun/ongoing/vp/bus/0018/01029";
const JOURNEY_V1: &str = "/hfp/v1/journey/ongoing/bus/0018/00640/1057/1/Munkkiniemi/07:32/1471139/3/60;25/20/38/71";
const DEADRUN_V1: &str = "/hfp/v1/deadrun/ongoing/train/0090/06313";

/// A payload of the event `VP` with the one field that is always needed, and these on top.
fn vp(fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { "," };
    format!("{{\"VP\":{{\"tst\":\"2024-02-13T16:32:59.931Z\",\"tsi\":1707841979{comma}{fields}}}}}")
}

#[track_caller]
fn ok(topic: &str, payload: &str) -> VehicleEvent {
    decode(topic, payload.as_bytes(), RECEIVED).unwrap()
}

#[track_caller]
fn rejected(topic: &str, payload: &str, reason: Reason, names: &str) {
    let reject = decode(topic, payload.as_bytes(), RECEIVED).unwrap_err();
    assert_eq!(reject.reason, reason, "{reject}");
    assert!(reject.detail.contains(names), "detail should name `{names}`: {reject}");
    assert!(reject.detail.len() < 600, "{} bytes", reject.detail.len());
}

#[test]
fn a_whole_v2_message() {
    let payload = r#"{"DEP":{"desi":"520","dir":"1","oper":6,"veh":1029,"tst":"2024-02-13T16:33:00.479Z","tsi":1707841980,"spd":1.25,"hdg":204,"lat":60.269247123,"long":24.853777,"acc":0.50,"dl":-240,"odo":25045,"drst":0,"oday":"2024-02-13","jrn":632,"line":1110,"start":"17:35","loc":"ODO","stop":4150208,"route":"5520","occu":100,"ttarr":"2024-02-13T16:29:00.000Z","ttdep":"2024-02-13T16:29:30.000Z"}}"#;
    let event = ok(&JOURNEY.replace("/vp/", "/dep/"), payload);
    let expected = VehicleEvent {
        schema: Default::default(),
        source: Source::HfpV2,
        operator: "0018".into(),
        vehicle: "01029".into(),
        event: "DEP".into(),
        journey_type: "journey".into(),
        temporal: Some("ongoing".into()),
        mode: Some("bus".into()),
        route: Some("5520".into()),
        direction: Some(1),
        headsign: Some("Martinlaakso".into()),
        start_time: Some("17:35".into()),
        operating_day: Some("2024-02-13".into()),
        next_stop: Some("4150208".into()),
        event_time_ms: 1_707_841_980_479,
        received_at_ms: RECEIVED,
        line_label: Some("520".into()),
        trip_operator: Some(6),
        lat: Some(60.269_247_123),
        lon: Some(24.853_777),
        speed_mps: Some(1.25),
        heading_deg: Some(204.0),
        acceleration_mps2: Some(0.5),
        odometer_m: Some(25_045),
        schedule_deviation_s: Some(-240),
        doors_open: Some(false),
        location_source: Some("ODO".into()),
        stop: Some(4_150_208),
        occupancy_pct: Some(100),
        journey: Some(632),
        line: Some(1110),
        scheduled_arrival_ms: Some(1_707_841_740_000),
        scheduled_departure_ms: Some(1_707_841_770_000),
        attrs: Default::default(),
    };
    assert_eq!(event, expected);
    assert_eq!(event.key(), "0018/01029");
}

#[test]
fn v1_has_no_event_level() {
    let payload = r#"{"VP":{"desi":"57","dir":"1","oper":18,"veh":640,"tst":"2018-10-09T04:32:52Z","tsi":1539059572,"spd":8.53,"hdg":314,"lat":60.237024,"long":25.081113,"acc":0.74,"dl":-48,"odo":136,"drst":0,"oday":"2018-10-09","jrn":71,"line":74,"start":"07:32"}}"#;
    let event = ok(JOURNEY_V1, payload);
    assert_eq!(
        (event.source, event.mode.as_deref(), event.route.as_deref()),
        (Source::HfpV1, Some("bus"), Some("1057"))
    );
    assert_eq!((event.next_stop.as_deref(), event.event.as_str()), (Some("1471139"), "VP"));
}

#[test]
fn topic_lengths_journey_19_with_sid_20_deadrun_9_v1_18_and_8() {
    for (topic, levels) in [
        (JOURNEY.to_owned(), 19),
        (format!("{JOURNEY}/3230").replace("/vp/", "/tlr/"), 20),
        (DEADRUN.to_owned(), 9),
        (JOURNEY_V1.to_owned(), 18),
        (DEADRUN_V1.to_owned(), 8),
    ] {
        assert_eq!(topic.split('/').count(), levels);
        let event = if topic.contains("/tlr/") { "TLR" } else { "VP" };
        let journey = ok(&topic, &vp("").replace("VP", event)).next_stop.is_some();
        assert_eq!(journey, topic.contains("journey"));
    }
}

#[test]
fn levels_appended_later_are_ignored() {
    assert_eq!(ok(&format!("{JOURNEY}/9/new/levels"), &vp("")), ok(JOURNEY, &vp("")));
    assert_eq!(ok(&format!("{DEADRUN}/new"), &vp("")), ok(DEADRUN, &vp("")));
}

#[test]
fn a_topic_that_is_too_short_is_rejected() {
    for topic in [
        "/hfp/v2/",
        "/hfp/v2/journey/ongoing/vp/bus/0018",
        "/hfp/v2/journey/ongoing/vp/bus/0018/01029",
        JOURNEY.rsplit_once('/').unwrap().0,
        JOURNEY_V1.rsplit_once('/').unwrap().0,
        DEADRUN.rsplit_once('/').unwrap().0,
    ] {
        rejected(topic, &vp(""), Reason::BadTopic, "levels");
    }
}

#[test]
fn missing_coordinates_are_empty_geohash_levels_and_null_fields() {
    let topic = "/hfp/v2/journey/ongoing/vp/bus/0018/01029/5520/1/Martinlaakso/17:35/4170293/0////";
    let event = ok(topic, &vp("\"lat\":null,\"long\":null,\"spd\":null,\"hdg\":null,\"acc\":null"));
    assert_eq!((event.lat, event.lon, event.speed_mps, event.heading_deg), (None, None, None, None));
    assert_eq!(event.next_stop.as_deref(), Some("4170293"));
}

#[test]
fn routes_with_spaces_and_letters_and_headsigns_beyond_ascii_stay_out_of_the_key() {
    let topic = "/hfp/v2/journey/ongoing/vp/tram/0040/00403/1004 4B/2/Hämeentie (Sörnäinen) ☃/07:20/EOL/0////";
    let event = ok(topic, &vp(""));
    assert_eq!(event.route.as_deref(), Some("1004 4B"));
    assert_eq!(event.headsign.as_deref(), Some("Hämeentie (Sörnäinen) ☃"));
    assert_eq!(event.next_stop.as_deref(), Some("EOL"));
    assert_eq!(event.key(), "0040/00403");
}

#[test]
fn operator_and_vehicle_must_be_plain_because_they_are_the_key() {
    for (bad, names) in
        [("0018/ /", "vehicle"), ("/01029/", "operator"), ("00ä8/01029/", "operator"), ("0018//", "vehicle")]
    {
        rejected(&JOURNEY.replace("0018/01029/", bad), &vp(""), Reason::BadTopic, names);
    }
    let long = "1".repeat(17);
    rejected(&DEADRUN.replace("01029", &long), &vp(""), Reason::BadTopic, "vehicle");
}

#[test]
fn empty_levels_are_nothing() {
    let event = ok("/hfp/v2/journey//vp//0018/01029//////////", &vp(""));
    assert_eq!((event.temporal, event.mode, event.route, event.headsign), (None, None, None, None));
    assert_eq!((event.direction, event.start_time, event.next_stop), (None, None, None));
}

#[test]
fn journey_types_and_temporal_types() {
    assert_eq!(ok(&DEADRUN.replace("deadrun", "signoff"), &vp("")).journey_type, "signoff");
    assert_eq!(ok(&JOURNEY.replace("ongoing", "upcoming"), &vp("")).temporal.as_deref(), Some("upcoming"));
    rejected(&DEADRUN.replace("deadrun", "joyride"), &vp(""), Reason::BadTopic, "joyride");
    rejected(&DEADRUN.replace("ongoing", "past"), &vp(""), Reason::BadTopic, "past");
}

#[test]
fn a_headsign_with_a_slash_is_noticed() {
    rejected(&JOURNEY.replace("Martinlaakso", "Martin/laakso"), &vp(""), Reason::BadTopic, "start time");
}

#[test]
fn every_event_type_of_the_protocol() {
    for name in [
        "VP", "DUE", "ARR", "ARS", "PDE", "DEP", "PAS", "WAIT", "DOO", "DOC", "TLR", "TLA", "DA", "DOUT", "BA", "BOUT",
        "VJA", "VJOUT",
    ] {
        let topic = JOURNEY.replace("/vp/", &format!("/{}/", name.to_lowercase()));
        assert_eq!(ok(&topic, &vp("").replace("VP", name)).event, name);
    }
}

#[test]
fn topic_and_payload_must_agree_on_the_event() {
    rejected(JOURNEY, &vp("").replace("VP", "ARR"), Reason::BadField, "ARR");
    rejected(JOURNEY, &vp("").replace("VP", "vp"), Reason::BadField, "event name");
}

#[test]
fn the_payload_is_an_object_with_one_member() {
    rejected(JOURNEY, "", Reason::InvalidJson, "payload");
    rejected(JOURNEY, "{}", Reason::InvalidJson, "empty");
    rejected(JOURNEY, "[1]", Reason::InvalidJson, "one member");
    rejected(JOURNEY, "{\"VP\":7}", Reason::InvalidJson, "fields");
    rejected(JOURNEY, "{\"VP\":{\"tst\":1},\"ARR\":{}}", Reason::InvalidJson, "ARR");
    rejected(JOURNEY, &vp("")[..30], Reason::InvalidJson, "EOF");
    rejected(JOURNEY, &format!("{} x", vp("")), Reason::InvalidJson, "trailing");
    let reject = decode(JOURNEY, b"{\"VP\":{\"tst\":\"\xff\"}}", RECEIVED).unwrap_err();
    assert_eq!(reject.reason, Reason::InvalidJson);
}

#[test]
fn only_the_time_is_required() {
    let event = ok(DEADRUN, &vp(""));
    assert_eq!((event.event_time_ms, event.received_at_ms), (1_707_841_979_931, RECEIVED));
    rejected(DEADRUN, "{\"VP\":{\"tsi\":1707841979}}", Reason::MissingField, "tst");
    rejected(DEADRUN, "{\"VP\":{\"tst\":null}}", Reason::BadField, "tst");
    rejected(DEADRUN, "{\"VP\":{\"tst\":1707841979}}", Reason::BadField, "tst");
    rejected(DEADRUN, "{\"VP\":{\"tst\":\"2024-02-13 16:32\"}}", Reason::BadField, "tst");
}

#[test]
fn times_come_with_and_without_milliseconds() {
    let at = |tst: &str| ok(DEADRUN, &format!("{{\"VP\":{{\"tst\":\"{tst}\"}}}}")).event_time_ms;
    assert_eq!(at("2018-10-09T04:32:52Z"), 1_539_059_572_000);
    assert_eq!(at("2018-10-09T04:32:52.7Z"), 1_539_059_572_700);
    assert_eq!(at("2018-10-09T07:32:52.001+03:00"), 1_539_059_572_001);
}

#[test]
fn both_clocks_are_kept_even_when_the_device_is_ahead() {
    let event = decode(DEADRUN, vp("").as_bytes(), 1_707_841_975_000).unwrap();
    assert!(event.event_time_ms > event.received_at_ms);
}

#[test]
fn direction_is_text() {
    assert_eq!(ok(DEADRUN, &vp("\"dir\":\"2\"")).direction, Some(2));
    assert_eq!(ok(DEADRUN, &vp("\"dir\":null")).direction, None);
    rejected(DEADRUN, &vp("\"dir\":\"3\""), Reason::BadField, "dir");
    rejected(&JOURNEY.replace("5520/1/", "5520/3/"), &vp(""), Reason::BadTopic, "direction");
}

#[test]
fn the_running_operator_differs_from_the_owner() {
    let event = ok(JOURNEY, &vp("\"oper\":6,\"veh\":1029"));
    assert_eq!((event.operator.as_str(), event.trip_operator, event.key().as_str()), ("0018", Some(6), "0018/01029"));
}

#[test]
fn negative_speed_is_kept_and_acceleration_may_be_an_integer() {
    let event = ok(JOURNEY, &vp("\"spd\":-1.00,\"acc\":0"));
    assert_eq!((event.speed_mps, event.acceleration_mps2), (Some(-1.0), Some(0.0)));
}

#[test]
fn deviation_is_negative_when_late() {
    assert_eq!(ok(JOURNEY, &vp("\"dl\":-232")).schedule_deviation_s, Some(-232));
    rejected(JOURNEY, &vp("\"dl\":\"late\""), Reason::BadField, "dl");
    rejected(JOURNEY, &vp("\"dl\":1.5"), Reason::BadField, "dl");
}

#[test]
fn an_odometer_that_is_not_a_number_costs_only_the_odometer() {
    let event = ok(JOURNEY, &vp("\"odo\":\"n/a\",\"lat\":60.1"));
    assert_eq!((event.odometer_m, event.lat), (None, Some(60.1)));
    assert_eq!(event.attrs["odo"], json!("n/a"));
    assert_eq!(ok(JOURNEY, &vp("\"odo\":12.6")).odometer_m, Some(13));
    assert_eq!(ok(JOURNEY, &vp("\"odo\":null")).odometer_m, None);
}

#[test]
fn stop_is_an_integer_text_or_null() {
    assert_eq!(ok(JOURNEY, &vp("\"stop\":4150208")).stop, Some(4_150_208));
    assert_eq!(ok(JOURNEY, &vp("\"stop\":\"4150208\"")).stop, Some(4_150_208));
    assert_eq!(ok(JOURNEY, &vp("\"stop\":null")).stop, None);
    let odd = ok(JOURNEY, &vp("\"stop\":\"H1234\""));
    assert_eq!((odd.stop, &odd.attrs["stop"]), (None, &json!("H1234")));
}

#[test]
fn metro_trains_lack_jrn_and_line() {
    let topic = "/hfp/v2/journey/ongoing/vp/metro/0050/00201/31M1/1/Vuosaari/12:00/1453601/0////";
    let event = ok(topic, &vp("\"desi\":\"M1\",\"dir\":\"1\""));
    assert_eq!((event.journey, event.line, event.mode.as_deref()), (None, None, Some("metro")));
}

#[test]
fn door_state_is_0_1_or_null() {
    assert_eq!(ok(JOURNEY, &vp("\"drst\":1")).doors_open, Some(true));
    assert_eq!(ok(JOURNEY, &vp("\"drst\":0")).doors_open, Some(false));
    assert_eq!(ok(JOURNEY, &vp("\"drst\":null")).doors_open, None);
    rejected(JOURNEY, &vp("\"drst\":2"), Reason::BadField, "drst");
}

#[test]
fn impossible_values_name_their_field() {
    for (fields, name) in [
        ("\"lat\":91", "lat"),
        ("\"lat\":\"60.1\"", "lat"),
        ("\"long\":-180.5", "long"),
        ("\"hdg\":361", "hdg"),
        ("\"occu\":101", "occu"),
        ("\"spd\":\"fast\"", "spd"),
        ("\"spd\":[1]", "spd"),
        ("\"veh\":true", "veh"),
        ("\"line\":{}", "line"),
        ("\"jrn\":99999999999999999999", "jrn"),
        ("\"oday\":\"13.2.2024\"", "oday"),
        ("\"start\":\"7:35\"", "start"),
        ("\"desi\":520", "desi"),
        ("\"ttarr\":\"soon\"", "ttarr"),
    ] {
        rejected(JOURNEY, &vp(fields), Reason::BadField, name);
    }
    rejected(JOURNEY, &vp("\"lat\":1e999"), Reason::InvalidJson, "out of range");
    rejected(JOURNEY, &vp("\"lat\":NaN"), Reason::InvalidJson, "payload");
}

#[test]
fn unknown_fields_go_to_attrs_as_they_came() {
    let event =
        ok(JOURNEY, &vp(r#""tlp-requestid":139,"tlp-line-configid":null,"dr-type":1,"new":{"a":[1,"\u00e4"]}"#));
    let attrs: Vec<(&str, &Value)> = event.attrs.iter().map(|(k, v)| (k.as_str(), v)).collect();
    assert_eq!(
        attrs,
        [
            ("dr-type", &json!(1)),
            ("new", &json!({"a": [1, "ä"]})),
            ("tlp-line-configid", &Value::Null),
            ("tlp-requestid", &json!(139)),
        ]
    );
}

#[test]
fn redundant_fields_are_kept_only_when_they_disagree() {
    assert!(ok(JOURNEY, &vp("\"veh\":1029,\"route\":\"5520\",\"dir\":\"1\",\"start\":\"17:35\"")).attrs.is_empty());
    let odd =
        ok(JOURNEY, &vp("\"veh\":7,\"route\":\"1\",\"dir\":\"2\",\"start\":\"17:36\"").replace("1707841979", "1"));
    assert_eq!(odd.route.as_deref(), Some("5520"), "the topic wins");
    assert_eq!(json!(odd.attrs), json!({"dir": 2, "route": "1", "start": "17:36", "tsi": 1, "veh": 7}));
}

#[test]
fn a_deadrun_takes_route_direction_and_start_from_the_payload() {
    let event = ok(DEADRUN, &vp("\"route\":\"5520\",\"dir\":\"1\",\"start\":\"17:35\""));
    assert_eq!(
        (event.route.as_deref(), event.direction, event.start_time.as_deref()),
        (Some("5520"), Some(1), Some("17:35"))
    );
}

#[test]
fn escapes_in_names_and_text_are_understood() {
    let event = ok(JOURNEY, &vp(r#""des\u0069":"5\u00322""#));
    assert_eq!(event.line_label.as_deref(), Some("522"));
}

#[test]
fn other_topics_have_no_decoder() {
    for topic in ["", "/", "/hfp/v3/journey", "hfp/v2/journey", "/hfp/v2", "gtfs-rt/x"] {
        rejected(topic, &vp(""), Reason::UnknownFormat, "/hfp/v2/");
    }
    rejected(&"ä".repeat(30_000), "", Reason::UnknownFormat, "known prefixes");
}

#[test]
fn a_payload_above_the_limit_is_not_looked_into() {
    let payload = vp("");
    assert!(decode_within(payload.len(), DEADRUN, payload.as_bytes(), RECEIVED).is_ok());
    let reject = decode_within(payload.len() - 1, DEADRUN, payload.as_bytes(), RECEIVED).unwrap_err();
    assert_eq!(reject.reason, Reason::TooLarge);
    assert!(reject.detail.contains(&payload.len().to_string()));
}

#[test]
fn deep_nesting_is_an_error_and_no_stack_overflow() {
    let deep = format!("{}{}", "[".repeat(60_000), "]".repeat(60_000));
    rejected(JOURNEY, &vp(&format!("\"x\":{deep}")), Reason::InvalidJson, "recursion");
}

#[test]
fn decoder_prefixes_do_not_overlap() {
    for (i, a) in DECODERS.iter().enumerate() {
        for b in &DECODERS[i + 1..] {
            assert!(!a.prefix.starts_with(b.prefix) && !b.prefix.starts_with(a.prefix), "{} {}", a.prefix, b.prefix);
        }
    }
}

/// Floats of an event, all of which must be finite.
fn floats(event: &VehicleEvent) -> [Option<f64>; 5] {
    [event.lat, event.lon, event.speed_mps, event.heading_deg, event.acceleration_mps2]
}

fn check_event(event: &VehicleEvent) {
    assert!(floats(event).into_iter().flatten().all(f64::is_finite), "{event:?}");
    let bytes = event.encode().unwrap();
    assert_eq!(&VehicleEvent::decode(&bytes).unwrap(), event, "an event survives its own encoding");
}

fn scalar_text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|i| i.to_string()),
        any::<u64>().prop_map(|i| i.to_string()),
        (-200i64..400).prop_map(|i| i.to_string()),
        any::<f64>().prop_map(|f| format!("{f:e}")),
        (-200f64..200.0).prop_map(|f| f.to_string()),
        Just("1e400".to_owned()),
        Just("-0.0".to_owned()),
        "[0-9:.TZ-]{0,24}".prop_map(|s| format!("\"{s}\"")),
        any::<String>().prop_map(|s| json!(s).to_string()),
        Just("\"2024-02-13T16:32:59.931Z\"".to_owned()),
        Just("[1,{\"a\":2.5}]".to_owned()),
    ]
}

const NAMES: [&str; 26] = [
    "desi", "dir", "oper", "veh", "tst", "tsi", "spd", "hdg", "lat", "long", "acc", "dl", "odo", "drst", "oday", "jrn",
    "line", "start", "loc", "stop", "route", "occu", "ttarr", "ttdep", "seq", "label",
];

proptest! {
    #[test]
    fn no_bytes_make_it_panic(topic in any::<String>(), payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        for topic in [topic.as_str(), JOURNEY, DEADRUN, JOURNEY_V1, DEADRUN_V1] {
            if let Ok(event) = decode(topic, &payload, RECEIVED) {
                check_event(&event);
            }
        }
    }

    #[test]
    fn no_topic_makes_it_panic(levels in proptest::collection::vec("[a-zä0-9: ;]{0,6}", 0..24), v1 in any::<bool>()) {
        let topic = format!("/hfp/{}/{}", if v1 { "v1" } else { "v2" }, levels.join("/"));
        if let Ok(event) = decode(&topic, vp("").as_bytes(), RECEIVED) {
            check_event(&event);
        }
    }

    /// A valid message with a few bytes changed, cut or doubled.
    #[test]
    fn damaged_messages_never_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut payload = vp("\"desi\":\"520\",\"spd\":1.5,\"lat\":60.2,\"long\":24.8,\"dl\":-3,\"odo\":12,\"drst\":1").into_bytes();
        for (at, byte) in edits {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        if let Ok(event) = decode(JOURNEY, &payload, RECEIVED) {
            check_event(&event);
        }
    }

    /// Any JSON value in any field: an event with finite numbers, or a rejection that says why.
    #[test]
    fn any_value_in_any_field(fields in proptest::collection::vec((prop::sample::select(&NAMES[..]), scalar_text()), 0..8)) {
        let body: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        for topic in [JOURNEY, DEADRUN] {
            match decode(topic, vp(&body.join(",")).as_bytes(), RECEIVED) {
                Ok(event) => check_event(&event),
                Err(reject) => prop_assert!(!reject.detail.is_empty() && reject.detail.len() < 600, "{}", reject),
            }
        }
    }
}
