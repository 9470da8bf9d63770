//! Logs and traces: set-up for a process, and W3C trace context in Kafka headers.

use crate::ports::Headers;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs and traces of a process.
#[derive(Debug, Clone)]
pub struct Options {
    /// Filter in the syntax of `tracing-subscriber`, such as `info,ingest=debug`.
    pub filter: String,
    /// Format of log lines, which go to stderr.
    pub format: LogFormat,
    /// OTLP gRPC endpoint for spans; without one, spans carry context and are not exported.
    pub otlp_endpoint: Option<String>,
    /// `service.name` of exported spans.
    pub service_name: String,
}

/// Logging or tracing could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error("telemetry.log_filter: {0}")]
    Filter(String),
    /// The exporter could not be made.
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(String),
    /// A subscriber was already there.
    #[error("logging is already set up")]
    Twice,
}

/// Keeps the exporter alive; shut it down at the end of the process so that the last spans go out.
#[derive(Debug)]
pub struct Guard(SdkTracerProvider);

impl Guard {
    /// Sends what is buffered.
    pub fn shutdown(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "trace exporter did not shut down cleanly");
        }
    }
}

/// Sets logging and tracing up for this process. Once.
pub fn init(options: &Options) -> Result<Guard, Error> {
    let filter = EnvFilter::try_new(&options.filter).map_err(|e| Error::Filter(e.to_string()))?;
    let provider = provider(options)?;
    let tracer = provider.tracer("barista");
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(true);
    let lines = match options.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .with(tracing_opentelemetry::layer().with_tracer(tracer))
        .try_init()
        .map_err(|_| Error::Twice)?;
    Ok(Guard(provider))
}

#[cfg(feature = "otlp")]
fn provider(options: &Options) -> Result<SdkTracerProvider, Error> {
    use opentelemetry_otlp::WithExportConfig;
    let mut builder = SdkTracerProvider::builder()
        .with_resource(opentelemetry_sdk::Resource::builder().with_service_name(options.service_name.clone()).build());
    if let Some(endpoint) = &options.otlp_endpoint {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .map_err(|e| Error::Exporter(e.to_string()))?;
        builder = builder.with_batch_exporter(exporter);
    }
    Ok(builder.build())
}

#[cfg(not(feature = "otlp"))]
fn provider(options: &Options) -> Result<SdkTracerProvider, Error> {
    if options.otlp_endpoint.is_some() {
        return Err(Error::Exporter("this build has no OTLP exporter (feature `otlp` of crate runtime)".to_owned()));
    }
    Ok(SdkTracerProvider::builder().build())
}

struct HeaderInjector<'a>(&'a mut Headers);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.0.retain(|(name, _)| name != key);
        // An empty `tracestate` says nothing.
        if !value.is_empty() {
            self.0.push(key, value);
        }
    }
}

struct HeaderExtractor<'a>(&'a Headers);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get_str(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.0.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Writes the context of `span` as `traceparent`; leaves the headers alone when it has none.
pub fn inject(span: &Span, headers: &mut Headers) {
    TraceContextPropagator::new().inject_context(&span.context(), &mut HeaderInjector(headers));
}

/// Writes the current span's context.
pub fn inject_current(headers: &mut Headers) {
    inject(&Span::current(), headers);
}

/// Makes `span` a child of the context in `headers`, if they carry one.
pub fn set_parent(span: &Span, headers: &Headers) {
    if headers.get(schemas::headers::TRACEPARENT).is_none() {
        return;
    }
    let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    if let Err(error) = span.set_parent(context) {
        tracing::trace!(%error, "span takes no parent");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn context_goes_through_headers() {
        let provider = SdkTracerProvider::builder().build();
        let subscriber =
            tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
        tracing::subscriber::with_default(subscriber, || {
            let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let mut incoming = Headers::default();
            incoming.push("traceparent", parent);
            let span = tracing::info_span!("work");
            set_parent(&span, &incoming);
            let mut outgoing = incoming.clone();
            inject(&span, &mut outgoing);
            let text = outgoing.get_str("traceparent").unwrap();
            assert!(text.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{text}");
            assert_ne!(text, parent, "the span is a child, not the parent itself");
            assert_eq!(outgoing.0.len(), 1);
        });
    }
}
