//! Load on an inference server over HTTP: keep-alive connections, each asks again as soon as it has its answer.
//!
//! ```text
//! cargo run --release -p executor --example http_load -- 127.0.0.1:8000 /v2/models/delay/infer 16 --connections 8 --seconds 10
//! ```
//!
//! `16` is the length of the one input row, `features` unless `--input NAME`; `--binary` sends it as binary tensor.
//! Works against any server of the Open Inference Protocol; prints one JSON object.

use hdrhistogram::Histogram;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

struct Options {
    address: String,
    path: String,
    shape: Vec<usize>,
    input: String,
    connections: usize,
    seconds: u64,
    binary: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options =
        options().ok_or("usage: ADDRESS PATH DIM[,DIM…] [--input NAME] [--connections N] [--seconds S] [--binary]")?;
    let request = request(&options);
    // Connections, plans and caches are warm before anything counts.
    run(&options, &request, Duration::from_secs(1))?;
    let (latencies, errors, seconds) = run(&options, &request, Duration::from_secs(options.seconds))?;
    let ms = |q: f64| latencies.value_at_quantile(q) as f64 / 1e3;
    let result = serde_json::json!({
        "connections": options.connections,
        "requests": latencies.len(),
        "errors": errors,
        "rps": latencies.len() as f64 / seconds,
        "p50_ms": ms(0.5), "p95_ms": ms(0.95), "p99_ms": ms(0.99), "max_ms": latencies.max() as f64 / 1e3,
    });
    writeln!(std::io::stdout(), "{result}")?;
    Ok(())
}

fn options() -> Option<Options> {
    let mut given = std::env::args().skip(1);
    let mut o = Options {
        address: given.next()?,
        path: given.next()?,
        shape: given.next()?.split(',').map(str::parse).collect::<Result<_, _>>().ok()?,
        input: "features".to_owned(),
        connections: 1,
        seconds: 5,
        binary: false,
    };
    while let Some(flag) = given.next() {
        match flag.as_str() {
            "--input" => o.input = given.next()?,
            "--connections" => o.connections = given.next()?.parse().ok()?,
            "--seconds" => o.seconds = given.next()?.parse().ok()?,
            "--binary" => o.binary = true,
            _ => return None,
        }
    }
    Some(o)
}

/// The bytes that every connection sends: one row with a different value in each place.
fn request(o: &Options) -> Vec<u8> {
    let elements: usize = o.shape.iter().product();
    let row: Vec<f32> = (0..elements).map(|i| (i % 97) as f32 / 97.0).collect();
    let shape: Vec<usize> = std::iter::once(1).chain(o.shape.iter().copied()).collect();
    let mut tensor = serde_json::json!({"name": o.input, "shape": shape, "datatype": "FP32"});
    let (mut more, mut binary) = (String::new(), Vec::new());
    let mut body = serde_json::json!({"id": "1"});
    if o.binary {
        tensor["parameters"] = serde_json::json!({"binary_data_size": 4 * elements});
        body["parameters"] = serde_json::json!({"binary_data_output": true});
        binary = row.iter().flat_map(|x| x.to_le_bytes()).collect();
    } else {
        tensor["data"] = serde_json::json!(row);
    }
    body["inputs"] = serde_json::json!([tensor]);
    let json = body.to_string();
    if o.binary {
        more = format!("Inference-Header-Content-Length: {}\r\nContent-Type: application/octet-stream\r\n", json.len());
    } else {
        more += "Content-Type: application/json\r\n";
    }
    let length = json.len() + binary.len();
    let head = format!("POST {} HTTP/1.1\r\nHost: {}\r\n{more}Content-Length: {length}\r\n\r\n", o.path, o.address);
    [head.into_bytes(), json.into_bytes(), binary].concat()
}

type Outcome = Result<(Histogram<u64>, u64, f64), String>;

fn run(options: &Options, request: &[u8], time: Duration) -> Outcome {
    let began = Instant::now();
    let until = began + time;
    let outcomes: Vec<Result<(Histogram<u64>, u64), String>> = std::thread::scope(|scope| {
        let one = |_| scope.spawn(move || connection(&options.address, request, until).map_err(|e| e.to_string()));
        let all: Vec<_> = (0..options.connections).map(one).collect();
        all.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?).collect()
    });
    let mut all = Histogram::new(3).map_err(|e| e.to_string())?;
    let mut errors = 0;
    for outcome in outcomes {
        let (latencies, failed) = outcome?;
        all.add(latencies).map_err(|e| e.to_string())?;
        errors += failed;
    }
    Ok((all, errors, began.elapsed().as_secs_f64()))
}

/// Microseconds of each answered request, and how many answers were no 200.
fn connection(
    address: &str,
    request: &[u8],
    until: Instant,
) -> Result<(Histogram<u64>, u64), Box<dyn std::error::Error>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (mut latencies, mut errors) = (Histogram::new(3)?, 0);
    let mut buffer = Vec::with_capacity(64 << 10);
    while Instant::now() < until {
        let sent = Instant::now();
        stream.write_all(request)?;
        if answer(&mut stream, &mut buffer)? {
            latencies.record(u64::try_from(sent.elapsed().as_micros())?)?;
        } else {
            errors += 1;
        }
    }
    Ok((latencies, errors))
}

/// Reads one response; true when its status is 200.
fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<bool, Box<dyn std::error::Error>> {
    buffer.clear();
    let mut chunk = [0u8; 16 << 10];
    let mut wanted = None;
    loop {
        if wanted.is_some_and(|wanted| buffer.len() >= wanted) {
            return Ok(buffer.starts_with(b"HTTP/1.1 200"));
        }
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            return Err("the server closed the connection".into());
        }
        buffer.extend_from_slice(&chunk[..n]);
        if wanted.is_none()
            && let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n")
        {
            let head = std::str::from_utf8(&buffer[..end])?.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            wanted = Some(end + 4 + length.ok_or("an answer without a length")?.trim().parse::<usize>()?);
        }
    }
}
